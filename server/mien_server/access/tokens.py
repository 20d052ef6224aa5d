"""Callers that prove themselves by a token (JWT) of somebody else. Used from the event loop only."""

import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jwt

from mien_server.access.callers import Caller
from mien_server.access.jwks import Jwks
from mien_server.access.roles import CallerRole, with_included

logger = logging.getLogger(__name__)

Algorithm: TypeAlias = Literal["RS256", "ES256", "EdDSA"]

LEEWAY_SECONDS = 30
"""How far the clocks of who signs and of this machine may be apart."""

MAX_REMEMBERED = 4096
"""Tokens whose signature is not checked again."""

MAX_NAME = 200


@dataclass(frozen=True)
class TokenRules:
    """What a token must be.

    Attributes:
        algorithm: how it is signed; no other is taken, whatever the token says.
        issuer: its `iss`.
        audience: in its `aud`.
        roles_claim: where it says what its subject may do: a claim's name, or names of nested ones with
            dots between them. Its value is a list of words, or words with spaces between them.
        roles: what role each word stands for; others count nothing.
    """

    algorithm: Algorithm
    issuer: str
    audience: str
    roles_claim: str
    roles: Mapping[str, CallerRole]


class Tokens:
    """Checks tokens, and remembers those that hold until they end or the keys change.

    Args:
        jwks: the keys that sign them.
        rules: what they must be.
    """

    def __init__(self, jwks: Jwks, rules: TokenRules) -> None:
        self._jwks = jwks
        self._rules = rules
        self._secret = secrets.token_bytes(32)
        self._checked_with: object = None
        self._true: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    def find(self, token: str) -> Caller | None:
        """Who a token belongs to; None if it does not hold, or not now.

        Takes microseconds for one that is remembered, else about as long as a signature: one or two
        tenths of a millisecond.
        """
        if self._checked_with is not self._jwks.keys:
            self._true.clear()
            self._checked_with = self._jwks.keys
        raw = token.encode("utf-8", "replace")
        mark = hashlib.blake2b(raw, key=self._secret, digest_size=16).digest()
        if (found := self._true.get(mark)) is not None:
            caller, ends = found
            return caller if time.time() < ends else None
        try:
            claims = self._claims(token)
        except (
            Exception
        ) as error:  # whatever a made-up token has the library raise, it does not hold
            logger.debug("token refused: %s", type(error).__name__)
            return None
        words = _words(claims, self._rules.roles_claim)
        roles = {self._rules.roles[word] for word in words if word in self._rules.roles}
        caller = Caller(claims["sub"][:MAX_NAME], with_included(roles), "token")
        self._true[mark] = (caller, float(claims["exp"]) + LEEWAY_SECONDS)
        if len(self._true) > MAX_REMEMBERED:
            self._true.popitem(last=False)
        return caller

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if "crit" in header:
            raise jwt.InvalidTokenError("it asks for what is not known here")
        key = self._jwks.find(header.get("kid"))
        if key is None:
            raise jwt.InvalidKeyError("nobody known has signed it")
        return jwt.decode(
            token,
            key,
            algorithms=[self._rules.algorithm],
            issuer=self._rules.issuer,
            audience=self._rules.audience,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )


def _words(claims: Mapping[str, Any], path: str) -> list[str]:
    """The words of a claim, of whatever form; none if it is not there."""
    value: Any = claims.get(path)  # a name may have dots itself
    if value is None:
        value = claims
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
