"""Builds what guards the door from the settings."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mien_server.access.certificates import Certificate, TlsFiles
from mien_server.access.gate import Gate
from mien_server.access.keyring import Keyring
from mien_server.access.keys import read_keys
from mien_server.access.watching import Watched
from mien_server.errors import OperatorError
from mien_server.settings import Settings, flag_of, name_of


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
    files: tuple[Watched[Any], ...]


def open_access(settings: Settings) -> Access:
    """Reads every file that the settings name.

    Raises:
        OperatorError: one cannot be used, or photos would cross a network in plain text.
    """
    files: list[Watched[Any]] = []
    keyring = certificate = None
    if (path := settings.keys_file) is not None:
        keyring = Keyring(read_keys(path))
        files.append(Watched("keys", [path], partial(read_keys, path), keyring.replace))
    if settings.tls_cert and settings.tls_key:
        tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        certificate = Certificate(tls.read())
        files.append(Watched("certificates", tls.paths, tls.read, certificate.replace))
    _check_exposure(settings)
    return Access(Gate(keyring), certificate, tuple(files))


def _check_exposure(settings: Settings) -> None:
    local = settings.grpc_address.is_loopback or settings.grpc_socket
    if local or settings.tls_cert or settings.insecure:
        return
    raise OperatorError(
        f"{name_of('grpc_address')}: {settings.grpc_address} is beyond loopback, where photos and vectors"
        f" would travel in plain text. Give the server a certificate ({flag_of('tls_cert')},"
        f" {flag_of('tls_key')}), or say that the network is to be trusted: {name_of('insecure')}."
    )
