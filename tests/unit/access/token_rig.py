"""An issuer of tokens, with a key of each kind."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = ec.generate_private_key(ec.SECP256R1())
ISSUER, AUDIENCE = "https://issuer.example", "mien"


def jwk(algorithm: str, kid: str | None = "one", key: Any = None, **more: Any) -> dict[str, Any]:
    """A public key as it is listed."""
    public = (key or PRIVATE[algorithm]).public_key()
    kinds: dict[str, Any] = {
        "RS256": jwt.algorithms.RSAAlgorithm,
        "ES256": jwt.algorithms.ECAlgorithm,
        "EdDSA": jwt.algorithms.OKPAlgorithm,
    }
    named = {} if kid is None else {"kid": kid}
    return {**kinds[algorithm].to_jwk(public, as_dict=True), **named, **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    """A key set."""
    return json.dumps({"keys": keys}).encode()


def token(
    algorithm: str = "ES256",
    *,
    key: Any = None,
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """A token that holds for ten minutes, but for what is told otherwise; None leaves a claim out."""
    now = int(time.time())
    usual = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "billing",
        "iat": now,
        "exp": now + 600,
        "roles": ["infer"],
    }
    whole = {name: value for name, value in (usual | claims).items() if value is not None}
    return jwt.encode(
        whole,
        key or PRIVATE[algorithm],
        algorithm=algorithm,
        headers={"kid": "one"} if headers is None else headers,
    )
