"""Certificates, keys and tokens of one's own, for servers on loopback; all can be replaced while one runs."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import ec

from mien_server.access.keys import KeysFile, new_entry
from mien_server.access.roles import CallerRole

ISSUER, AUDIENCE, KEY_ID = "https://issuer.example", "mien", "one"
Metadata = tuple[tuple[str, str], ...]


def bearer(credential: str) -> Metadata:
    """The metadata that a key or token goes in."""
    return (("authorization", f"Bearer {credential}"),)


@dataclass
class LocalAccess:
    """An authority, a server's certificate, a file of keys and an issuer of tokens, all in one folder.

    Attributes:
        folder: where the files are; it must exist.
        authority: signs the server's certificate.
        key: of a caller that has every role, there from the start.
    """

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)
    _signer: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.key = self.add_key("all", tuple(CallerRole))[1]
        self.renew()
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._signer.public_key(), as_dict=True)
        (self.folder / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": KEY_ID}]}))

    @property
    def key_flags(self) -> list[str]:
        """Flags of `mien-server serve` by which it knows the keys and tokens."""
        files = ["--keys-file", str(self._keys), "--jwt-jwks", str(self.folder / "jwks.json")]
        names = ["--jwt-algorithm", "ES256", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE]
        return [*files, *names]

    @property
    def tls_flags(self) -> list[str]:
        """Flags by which it speaks TLS alone."""
        return ["--tls-cert", str(self._cert), "--tls-key", str(self._private)]

    @property
    def trusted(self) -> bytes:
        """The authority's certificate, PEM, by which clients know the server."""
        pem: bytes = self.authority.cert_pem.bytes()
        return pem

    def credentials(self) -> grpc.ChannelCredentials:
        """What a channel to it takes."""
        return grpc.ssl_channel_credentials(self.trusted)

    def renew(self, not_after: datetime | None = None) -> bytes:
        """Replaces the server's certificate by a new one of the authority, which it gives back as PEM.

        Args:
            not_after: when it ends; None: in years.
        """
        signed = self.authority.issue_cert("localhost", "127.0.0.1", not_after=not_after)
        for path, blob in (
            (self._private, signed.private_key_pem),
            (self._cert, signed.cert_chain_pems[0]),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(blob.bytes())
            new.chmod(0o600)
            new.replace(path)
        pem: bytes = signed.cert_chain_pems[0].bytes()
        return pem

    def add_key(
        self, name: str, roles: Sequence[CallerRole] = (CallerRole.INFER,)
    ) -> tuple[str, str]:
        """Puts a new key into the file: its id, and the key."""
        entry, key = new_entry(name, tuple(roles), certificate=False)
        KeysFile(self._keys).add(entry)
        return entry.id, key

    def revoke_key(self, key_id: str) -> None:
        """Has a key count no more."""
        KeysFile(self._keys).revoke(key_id)

    def token(self, roles: Sequence[CallerRole] = (CallerRole.INFER,), **claims: Any) -> str:
        """A token that holds for an hour, but for what is told otherwise."""
        now = int(time.time())
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "by token", "iat": now, "exp": now + 3600}
        whole = {**usual, "roles": list(roles), **claims}
        return jwt.encode(whole, self._signer, algorithm="ES256", headers={"kid": KEY_ID})

    @property
    def _keys(self) -> Path:
        return self.folder / "keys.json"

    @property
    def _cert(self) -> Path:
        return self.folder / "server.pem"

    @property
    def _private(self) -> Path:
        return self.folder / "server.key"
