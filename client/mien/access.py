"""What a client proves itself with: an API key, a token, a certificate."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from mien.channel import is_local
from mien.errors import InvalidRequest

TokenLike = str | Callable[[], str]
"""A token, or what gives the one to use. That is asked before every call, on a thread that may wait, and so
should keep its token as long as it holds."""

PathLike = str | os.PathLike[str]

_OTHERS = 0o177
"""The bits of a mode that a file with a secret must not have."""


class Bearer:
    """The key or token that goes with every call.

    Args:
        api_key: the key, or None.
        token: the token, or what gives it, or None.
        address: the server's, host:port.
        encrypted: whether the connection is.
        insecure: whether the secret may cross a network in plain text.

    Raises:
        TypeError: it is no str.
        ValueError: it is no key or token, there are two of them, or it would cross a network in plain text.
    """

    def __init__(
        self,
        api_key: str | None = None,
        token: TokenLike | None = None,
        *,
        address: str,
        encrypted: bool,
        insecure: bool,
    ) -> None:
        if api_key is not None and token is not None:
            raise ValueError("give an API key or a token, not both")
        self._sent: tuple[tuple[str, str], ...] = ()
        self._token = token if callable(token) else None
        if api_key is not None:
            self._sent = _metadata(api_key, "the API key")
        elif token is not None and not callable(token):
            self._sent = _metadata(token, "the token")
        given = api_key is not None or token is not None
        if given and not encrypted and not insecure and not is_local(address):
            raise ValueError(
                f"the key or token would cross the network to {address} in plain text: encrypt"
                " (credentials=, --tls), or accept that (insecure=True, --insecure)"
            )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with a call. Asks for the token, if that is renewed."""
        if self._token is None:
            return self._sent
        return _metadata(self._token(), "what token= gave")


def _metadata(secret: object, what: str) -> tuple[tuple[str, str], ...]:
    # The messages never hold the secret: they may be logged.
    if not isinstance(secret, str):
        raise TypeError(f"{what} must be a str, not of the type {type(secret).__name__}")
    if not secret or not all("!" <= character <= "~" for character in secret):
        raise ValueError(f"{what} must be printable ASCII, without spaces, and not empty")
    return (("authorization", f"Bearer {secret}"),)


def read_secret(path: Path) -> str:
    """The key or token in a file, without the space around it.

    Raises:
        OSError: the file cannot be read.
        InvalidRequest: others than its owner may read it, or it holds no key or token.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & _OTHERS:
            raise InvalidRequest(
                f"{path} has the mode {mode & 0o777:o}, but only its owner may read it: chmod 600 {path}",
                reason="FILE_ERROR",
            )
        secret = file.read(65536).decode("ascii", "replace").strip()
    if not secret or not secret.isprintable() or not secret.isascii() or " " in secret:
        raise InvalidRequest(f"{path} holds no key or token", reason="FILE_ERROR")
    return secret


def tls_credentials(
    ca: PathLike | None = None, *, cert: PathLike | None = None, key: PathLike | None = None
) -> grpc.ChannelCredentials:
    """The `credentials` of a client over TLS.

    Args:
        ca: a PEM file of the authorities to trust; unset, the well-known ones.
        cert: a PEM file of the client's own certificate, for a server that asks for one, with those that
            signed it after it.
        key: a PEM file of its private key, without a password.

    Raises:
        OSError: a file cannot be read.
        InvalidRequest: a file does not hold what it should, or the key is not the certificate's.
        ValueError: there is a certificate without a key, or a key without a certificate.
    """
    if (cert is None) != (key is None):
        raise ValueError("a client certificate (cert, --tls-cert) needs its key (key, --tls-key)")
    roots = None if ca is None else _pem(Path(ca), "certificate", "ca")
    if cert is None or key is None:
        return grpc.ssl_channel_credentials(roots)
    chain, private = _pem(Path(cert), "certificate", "cert"), _pem(Path(key), "private key", "key")
    try:
        # gRPC would say of a key that does not fit only that the server cannot be reached.
        ssl.create_default_context().load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise InvalidRequest(
            f"{os.fspath(key)} is not the key of the certificate in {os.fspath(cert)}, or has a password",
            reason="FILE_ERROR",
            field="key",
        ) from error
    return grpc.ssl_channel_credentials(roots, private, chain)


def _pem(path: Path, what: str, field: str) -> bytes:
    content = path.read_bytes()
    # gRPC would take its own authorities for those of an empty file.
    if f"{what.upper()}-----".encode() not in content:
        raise InvalidRequest(f"{path} holds no {what} in PEM", reason="FILE_ERROR", field=field)
    return content
