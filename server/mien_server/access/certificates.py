"""The server's certificate, its key, and whose client certificates count: read, checked, and read again."""

import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mien_server.errors import OperatorError
from mien_server.settings import name_of

if TYPE_CHECKING:
    from cryptography import x509

logger = logging.getLogger(__name__)

SOON = timedelta(days=14)
"""A certificate that ends sooner is a warning whenever it is read."""


class TlsError(OperatorError):
    """Certificate and key cannot be used; the message names the flag, the file and what to do."""


@dataclass(frozen=True)
class Tls:
    """What TLS works with, checked.

    Attributes:
        chain: the server's certificate and those that signed it, PEM.
        key: its private key, PEM.
        client_ca: the authorities whose client certificates count, PEM; None: no client is asked for one.
        ends: when the first certificate of any of them ends.
        names: that the server's certificate is for.
    """

    chain: bytes
    key: bytes
    client_ca: bytes | None
    ends: datetime
    names: tuple[str, ...]


@dataclass(frozen=True)
class TlsFiles:
    """Where it lies."""

    cert: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> list[Path]:
        """All of the files."""
        return [self.cert, self.key, *([self.client_ca] if self.client_ca else [])]

    def read(self) -> Tls:
        """Reads and checks them.

        Raises:
            TlsError: a file cannot be read or holds something else, the key is not the certificate's, or a
                certificate has ended or not begun.
        """
        chain, key = _read(self.cert, "tls_cert"), _read(self.key, "tls_key")
        authorities = None if self.client_ca is None else _read(self.client_ca, "tls_client_ca")
        certificates = _certificates(chain, self.cert, "tls_cert")
        for certificate in certificates:
            if why := _why_not_now(certificate):
                raise TlsError(f"{name_of('tls_cert')}: a certificate in {self.cert} {why}")
        self._check_key(key, certificates[0])
        if authorities is not None and self.client_ca is not None:
            listed = _certificates(authorities, self.client_ca, "tls_client_ca")
            # Who changes authorities keeps the old one for a while, beyond its end perhaps.
            if not (valid := [each for each in listed if not _why_not_now(each)]):
                why = _why_not_now(listed[0])
                raise TlsError(f"{name_of('tls_client_ca')}: the one in {self.client_ca} {why}")
            certificates += valid
        ends = min(certificate.not_valid_after_utc for certificate in certificates)
        if ends - datetime.now(UTC) < SOON:
            logger.warning("a certificate ends soon", extra={"file": self.cert, "ends": ends})
        return Tls(chain, key, authorities, ends, _names(certificates[0]))

    def _check_key(self, key: bytes, certificate: "x509.Certificate") -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        name = name_of("tls_key")
        try:
            private = load_pem_private_key(key, password=None)
        except TypeError as error:
            raise TlsError(
                f"{name}: {self.key} has a password, which nobody can type here. Write it without one:"
                f" openssl pkey -in {self.key} -out OTHER"
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise TlsError(f"{name}: {self.key} holds no private key in PEM.") from error
        if private.public_key() != certificate.public_key():
            raise TlsError(
                f"{name}: {self.key} is not the key of the first certificate in {self.cert}"
                f" ({name_of('tls_cert')}). That one must be the server's own; who signed it comes after it."
            )
        if self.key.stat().st_mode & stat.S_IROTH:
            logger.warning("everybody may read the private key: chmod 600 %s", self.key)


class Certificate:
    """What TLS works with now.

    Args:
        tls: as it was read at the start.

    Attributes:
        tls: the latest that holds. Replaced as a whole, so that any thread may read it.
    """

    def __init__(self, tls: Tls) -> None:
        self.tls = tls

    def replace(self, tls: Tls) -> None:
        """Takes another; connections that are made from now on get it."""
        self.tls = tls

    def days_left(self) -> float:
        """How long all of its certificates hold yet; negative if one does not hold any more."""
        return (self.tls.ends - datetime.now(UTC)) / timedelta(days=1)


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{name_of(setting)}: cannot read {path}: {error.strerror}.") from error


def _certificates(pem: bytes, path: Path, setting: str) -> list["x509.Certificate"]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsError(f"{name_of(setting)}: {path} holds no certificate in PEM.") from error


def _why_not_now(certificate: "x509.Certificate") -> str:
    """Why a certificate does not hold now; "" if it does."""
    now, subject = datetime.now(UTC), certificate.subject.rfc4514_string()
    if (end := certificate.not_valid_after_utc) <= now:
        return f"({subject}) ended at {end}. Renew it."
    if (begin := certificate.not_valid_before_utc) > now:
        return f"({subject}) begins only at {begin}. Check this machine's clock, or take another."
    return ""


def _names(certificate: "x509.Certificate") -> tuple[str, ...]:
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    names: Sequence[str] = extension.value.get_values_for_type(x509.DNSName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return (*names, *map(str, addresses))
