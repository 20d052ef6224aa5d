"""What proves to a Milvus who asks it, and to mien that it is the right one."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from mien_server.errors import OperatorError
from mien_server.settings import Settings, name_of


@dataclass(frozen=True, slots=True)
class MilvusAccess:
    """How a Milvus is come by.

    Attributes:
        token: "user:password", or what else Milvus takes; "": none.
        ca: a PEM file of the authorities that may sign its certificate; None: those that gRPC comes with.
        cert: a PEM file of the certificate that mien shows, with those that signed it; None: none.
        key: a PEM file of its private key; as `cert`.
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def options(self) -> dict[str, str]:
        """What pymilvus takes for a connection over TLS."""
        if self.ca is None:
            return {}
        if self.cert is None:
            return {"server_pem_path": str(self.ca)}
        # With `server_pem_path` it would leave the certificate out.
        paths = {"ca_pem_path": self.ca, "client_pem_path": self.cert, "client_key_path": self.key}
        return {name: str(path) for name, path in paths.items()}


NO_ACCESS = MilvusAccess()
"""That of a Milvus which asks for nothing."""


def read_access(settings: Settings, *places: str) -> MilvusAccess:
    """What the settings say, checked.

    Args:
        settings: name the files.
        places: URLs of Milvus, and folders.

    Raises:
        OperatorError: a file cannot be read or holds something else, or none of the places speaks TLS and the
            settings have files for that.
    """
    ca, cert, key = settings.gallery_tls_ca, settings.gallery_tls_cert, settings.gallery_tls_key
    if ca is not None:
        if not any(place.startswith("milvus+tls:") for place in places):
            raise OperatorError(
                f"{name_of('gallery_tls_ca')}: it takes a Milvus at milvus+tls://host:port"
                f" ({name_of('gallery_url')}); with another scheme there is no TLS."
            )
        _check_certificates(ca)
        if cert is not None and key is not None:
            _check_pair(cert, key)
    return MilvusAccess(_read_token(settings.gallery_token_file), ca, cert, key)


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{name_of(setting)}: cannot read {path}: {error.strerror}.") from error


def _read_token(path: Path | None) -> str:
    if path is None:
        return ""
    name = name_of("gallery_token_file")
    try:
        token = _read(path, "gallery_token_file").decode().strip()
    except UnicodeDecodeError:
        # Not its message, which has a byte of the file in it.
        raise OperatorError(f"{name}: {path} is no text in UTF-8.") from None
    if len(token.splitlines()) != 1:
        raise OperatorError(
            f"{name}: {path} must hold one line, user:password or an API key; it has"
            f" {len(token.splitlines())}."
        )
    return token


def _check_certificates(path: Path) -> None:
    _read(path, "gallery_tls_ca")  # which says better why it cannot be read
    try:
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError as error:
        raise OperatorError(
            f"{name_of('gallery_tls_ca')}: {path} holds no certificate in PEM."
        ) from error


def _check_pair(cert: Path, key: Path) -> None:
    for path, setting in ((cert, "gallery_tls_cert"), (key, "gallery_tls_key")):
        _read(path, setting)
    try:
        # Without a function that gives a password OpenSSL asks for one at the terminal.
        ssl.create_default_context().load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise OperatorError(
            f"{name_of('gallery_tls_cert')}: {cert} and {key} ({name_of('gallery_tls_key')}) are not a"
            " certificate in PEM and its private key without a password."
        ) from error
