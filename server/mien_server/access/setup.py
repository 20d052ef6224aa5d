"""Builds what guards the door from the settings."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mien_server.access.certificates import Certificate, TlsFiles
from mien_server.access.gate import Gate
from mien_server.access.keyring import Keyring
from mien_server.access.keys import read_keys
from mien_server.access.limits import CallerLimits
from mien_server.access.roles import ROLES, CallerRole
from mien_server.access.watching import Looking, Watched
from mien_server.errors import OperatorError
from mien_server.settings import Settings, SettingsError, flag_of, name_of

if TYPE_CHECKING:
    from mien_server.access.tokens import Tokens

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """What guards the door.

    Attributes:
        gate: what every call passes.
        certificate: what TLS works with; None: the server speaks plain text.
        files: what is read again when it changes.
    """

    gate: Gate
    certificate: Certificate | None
    files: tuple[Looking, ...]


def open_access(settings: Settings) -> Access:
    """Reads every file that the settings name.

    Raises:
        OperatorError: one cannot be used, or photos would cross a network in plain text.
    """
    _check_exposure(settings)
    files: list[Looking] = []
    keyring = certificate = None
    if (path := settings.keys_file) is not None:
        keyring = Keyring(())
        files.append(Watched("keys", [path], partial(read_keys, path), keyring.replace))
        keyring.replace(read_keys(path))
    if settings.tls_cert and settings.tls_key:
        tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        certificate, watched = _certificate(tls)
        files.append(watched)
    tokens = None
    if settings.jwt_jwks is not None:
        tokens, keys = _tokens(settings, settings.jwt_jwks)
        files.append(keys)
    gate = Gate(keyring, tokens, _limits(settings))
    if gate.limits and not gate.closed:
        raise SettingsError(
            f"{name_of('caller_rate')}, {name_of('caller_max_calls')}: callers have limits of their own only"
            f" where they are known, by {name_of('keys_file')} or {name_of('jwt_jwks')}"
        )
    return Access(gate, certificate, tuple(files))


def _limits(settings: Settings) -> CallerLimits | None:
    rate, at_once = settings.caller_rate, settings.caller_max_calls
    if rate is None and at_once is None:
        return None
    burst = settings.caller_burst or max(1, math.ceil(rate or 1))
    return CallerLimits(rate=rate, burst=burst, at_once=at_once)


def _certificate(files: TlsFiles) -> tuple[Certificate, Looking]:
    watched = Watched("certificates", files.paths, files.read, lambda tls: certificate.replace(tls))
    certificate = Certificate(files.read())
    return certificate, watched


def _tokens(settings: Settings, source: str) -> "tuple[Tokens, Looking]":
    # Who uses no tokens need not import what checks them.
    from mien_server.access.jwks import FetchedJwks, Jwks, read_jwks
    from mien_server.access.tokens import TokenRules, Tokens

    algorithm = settings.jwt_algorithm
    rules = TokenRules(
        algorithm,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        roles_claim=settings.jwt_roles_claim,
        roles=_roles_of_words(settings.jwt_role),
    )
    if source.startswith("https://"):
        fetched = FetchedJwks(source, algorithm)
        return Tokens(fetched, rules), fetched
    path = Path(source)
    jwks, read = Jwks({}), partial(read_jwks, path, algorithm)
    watched = Watched("keys of tokens", [path], read, jwks.replace)
    jwks.replace(read())
    return Tokens(jwks, rules), watched


def _roles_of_words(pairs: Iterable[str]) -> dict[str, CallerRole]:
    """What each word in a token's claim of roles stands for."""
    found = {}
    for pair in pairs:
        word, _, role = pair.rpartition("=")
        if not word or role not in list(CallerRole):
            raise SettingsError(
                f"{name_of('jwt_role')}: {pair!r} is not WORD=ROLE; the roles are {ROLES}"
            )
        found[word] = CallerRole(role)
    return found or {role.value: role for role in CallerRole}


def _check_exposure(settings: Settings) -> None:
    local = settings.grpc_address.is_loopback or settings.grpc_socket
    if local or settings.tls_cert:
        return
    if settings.insecure:
        _log.warning(
            "%s is beyond loopback, and %s: photos, vectors and keys cross the network in plain text",
            *(settings.grpc_address, name_of("insecure")),
        )
        return
    raise OperatorError(
        f"{name_of('grpc_address')}: {settings.grpc_address} is beyond loopback, where photos and vectors"
        f" would travel in plain text. Give the server a certificate ({flag_of('tls_cert')},"
        f" {flag_of('tls_key')}), or say that the network is to be trusted: {name_of('insecure')}."
    )
