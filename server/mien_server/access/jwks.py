"""The public keys that sign tokens, as JSON Web Key Set (RFC 7517): of a file, or of an https address."""

import asyncio
import json
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mien_server.errors import OperatorError
from mien_server.settings import name_of

logger = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024
MIN_RSA_BITS = 2048

FETCH_SECONDS = 10.0
"""How long an address may take for all of its answer."""

REFRESH_SECONDS = 300.0
RETRY_SECONDS = 10.0
"""Between two fetches while there are no keys, or a token names one that is not known."""

MAX_AGE_SECONDS = 86_400.0
"""Keys that could not be fetched again for so long do not count any more."""


class JwksError(OperatorError):
    """Keys cannot be had, or none of them can check a token; the message says why."""


Keys = Mapping[str | None, jwt.PyJWK]
"""By `kid`; None of one that has none."""


class Jwks:
    """The keys that there are now.

    Args:
        keys: to begin with.

    Attributes:
        keys: replaced as a whole.
        missed: a token was signed by a key that is not known.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.missed = False

    def replace(self, keys: Keys) -> None:
        """Takes others."""
        self.keys, self.missed = keys, False

    def find(self, kid: object) -> jwt.PyJWK | None:
        """The key that a token names; the only one, if it names none."""
        if kid is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        found = self.keys.get(kid) if isinstance(kid, str) else None
        self.missed = self.missed or found is None
        return found


class FetchedJwks(Jwks):
    """Keys of an https address: fetched every few minutes, and soon after a token that names another.

    Args:
        url: https://…
        algorithm: of the tokens.
    """

    def __init__(self, url: str, algorithm: str) -> None:
        super().__init__({})
        self._url = url
        self._algorithm = algorithm
        self._tried = self._got = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    async def look(self, *, forced: bool = False) -> None:
        """Begins to fetch if it is time for that, and does not wait for it."""
        if self._fetching is not None and not self._fetching.done():
            return
        now = time.monotonic()
        if self.keys and now - self._got > MAX_AGE_SECONDS:
            logger.error(
                "keys of tokens are too old, none counts any more", extra={"url": self._url}
            )
            self.replace({})
        soon = self.missed or not self.keys or self._tried > self._got
        if forced or now - self._tried >= (RETRY_SECONDS if soon else REFRESH_SECONDS):
            self._tried = now
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            keys = parse_jwks(await asyncio.to_thread(fetch, self._url), self._url, self._algorithm)
        except JwksError as error:
            logger.warning("keys of tokens not fetched, those from before stay: %s", error)
            return
        before = {kid: key.key for kid, key in self.keys.items()}
        self._got = self._tried = time.monotonic()
        self.missed = False
        if before != {kid: key.key for kid, key in keys.items()}:
            self.replace(keys)
            logger.info("keys of tokens fetched", extra={"url": self._url, "keys": len(keys)})


def read_jwks(path: Path, algorithm: str) -> Keys:
    """The keys of a file.

    Raises:
        JwksError: it cannot be read, or no key in it can check a token.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JwksError(f"{name_of('jwt_jwks')}: cannot read {path}: {error.strerror}.") from error
    return parse_jwks(raw, str(path), algorithm)


def fetch(url: str) -> bytes:
    """What an https address answers, within `FETCH_SECONDS` and `MAX_BYTES`; redirects are not followed.

    Raises:
        JwksError: it cannot be had.
    """
    handlers = urllib.request.HTTPSHandler(context=ssl.create_default_context()), _NoRedirects()
    opener = urllib.request.build_opener(*handlers)
    give_up, raw = time.monotonic() + FETCH_SECONDS, b""
    try:
        with opener.open(url, timeout=FETCH_SECONDS / 2) as response:
            # Piece by piece: who sends a byte every few seconds is not waited for.
            while len(raw) <= MAX_BYTES and (piece := response.read1(65536)):
                raw += piece
                if time.monotonic() > give_up:
                    raise JwksError(f"{url}: no whole answer in {FETCH_SECONDS:g} s.")
    except (OSError, HTTPException, ValueError) as error:
        raise JwksError(f"{url}: {getattr(error, 'reason', None) or error}.") from error
    return raw


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: a redirect is an error. It might lead to an address that nobody vouches for."""


def parse_jwks(raw: bytes, source: str, algorithm: str) -> Keys:
    """The keys of a set that can check signatures of an algorithm; others are left out.

    Args:
        raw: JSON.
        source: where it comes from, for messages.
        algorithm: RS256, ES256 or EdDSA.

    Raises:
        JwksError: it is too large or no key set, or has no such key.
    """
    if len(raw) > MAX_BYTES:
        raise JwksError(f"{source}: more than {MAX_BYTES} bytes.")
    try:
        listed = json.loads(raw)["keys"]
        usable = {each.get("kid"): key for each in listed if (key := _usable(each, algorithm))}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JwksError(f"{source}: no JSON Web Key Set.") from error
    if not usable:
        raise JwksError(
            f"{source}: no public key in it can check {algorithm} ({name_of('jwt_algorithm')}): such a key is"
            f" RSA of at least {MIN_RSA_BITS} bits for RS256, P-256 for ES256, Ed25519 for EdDSA."
        )
    return usable


def _usable(listed: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    if listed.get("use", "sig") != "sig" or listed.get("alg", algorithm) != algorithm:
        return None
    if not isinstance(listed.get("kid"), str | None):
        return None
    try:
        key = jwt.PyJWK(listed, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    match algorithm, key.key:
        case "RS256", rsa.RSAPublicKey(key_size=bits) if bits >= MIN_RSA_BITS:
            return key
        case "ES256", ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return key
        case "EdDSA", ed25519.Ed25519PublicKey():
            return key
    return None
