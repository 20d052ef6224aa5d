"""Tokens: which hold, for whom, and which of the many that somebody might make up do not."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest

from mien_server.access import tokens as module
from mien_server.access.callers import Caller
from mien_server.access.jwks import Jwks, parse_jwks
from mien_server.access.roles import CallerRole
from mien_server.access.tokens import TokenRules, Tokens
from tests.unit.access.token_rig import AUDIENCE, ISSUER, OTHER, PRIVATE, jwk, jwks, token

WORDS = {role.value: role for role in CallerRole}


def checker(algorithm: Any = "ES256", source: bytes | None = None, **rules: Any) -> Tokens:
    given = {"roles_claim": "roles", "roles": WORDS} | rules
    keys = parse_jwks(source or jwks(jwk(algorithm)), "test", algorithm)
    return Tokens(Jwks(keys), TokenRules(algorithm, ISSUER, AUDIENCE, **given))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_token_of_each_algorithm_names_its_caller(algorithm: str) -> None:
    tokens = checker(algorithm)
    expected = Caller("billing", frozenset({CallerRole.INFER}), "token")
    for _ in range(2):
        assert tokens.find(token(algorithm)) == expected


@pytest.mark.parametrize("pinned", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("used", ["RS256", "ES256", "EdDSA"])
def test_only_the_pinned_algorithm_counts(pinned: str, used: str) -> None:
    source = jwks(*(jwk(each, kid=each) for each in PRIVATE))
    found = checker(pinned, source).find(token(used, headers={"kid": used}))
    assert (found is not None) == (used == pinned)


NOW = int(time.time())
BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "ended": {"exp": NOW - 60},
    "never ends": {"exp": None},
    "ends at a word": {"exp": "tomorrow"},
    "not yet": {"nbf": NOW + 600},
    "issued later": {"iat": NOW + 600},
    "of another issuer": {"iss": "https://other.example"},
    "of no issuer": {"iss": None},
    "for another": {"aud": "other"},
    "for others": {"aud": ["other", "another"]},
    "for nobody": {"aud": None},
    "of nobody": {"sub": None},
    "of a number": {"sub": 7},
}


@pytest.mark.parametrize("claims", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
def test_token_with_a_claim_amiss_does_not_hold(claims: dict[str, Any]) -> None:
    try:
        bad = token(**claims)
    except TypeError:  # PyJWT makes no such token, others do
        bad = signed({"alg": "ES256", "kid": "one"}, claims)
    assert checker().find(bad) is None


def signed(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token as any library might make it, signed with the true key."""
    usual = jwt.decode(token(), options={"verify_signature": False}) | claims
    parts = [encoded(json.dumps(each).encode()) for each in (header, usual)]
    algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
    signature = algorithm.sign(".".join(parts).encode(), PRIVATE["ES256"])
    return ".".join([*parts, encoded(signature)])


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_the_rig_signs_truly() -> None:
    assert checker().find(signed({"alg": "ES256", "kid": "one"}, {}))


def test_forgeries_do_not_hold() -> None:
    tokens, good = checker(), token()
    head, body, signature = good.split(".")
    public = json.dumps(jwk("ES256")).encode()
    none = encoded(json.dumps({"alg": "none", "kid": "one"}).encode())
    symmetric = encoded(json.dumps({"alg": "HS256", "kid": "one"}).encode())
    mac = hmac.new(public, f"{symmetric}.{body}".encode(), hashlib.sha256).digest()
    other_body = encoded(json.dumps({"sub": "root", "roles": ["admin"]}).encode())
    forged = [
        f"{head}.{other_body}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{symmetric}.{body}.{encoded(mac)}",
        token(key=OTHER),
        token(headers={"kid": "one", "jwk": jwk("ES256", key=OTHER)}, key=OTHER),
        token(headers={"kid": "one", "jku": "https://evil.example/keys"}, key=OTHER),
        token(headers={"kid": "two"}),
        token(headers={"kid": "../../etc/passwd"}),
        signed({"alg": "ES256", "kid": "one", "crit": ["exp"]}, {}),
        signed({"alg": "ES256", "kid": 1}, {}),
        f"{encoded(b'[' * 5000)}.{body}.{signature}",
        f"{encoded(b'7')}.{body}.{signature}",
        *("", ".", "..", "a.b.c", "\x00", "\ud800", "é" * 100, "a" * 8000, good[:-2], f"{good}.x"),
    ]
    assert [each for each in forged if tokens.find(each)] == []
    assert tokens.find(good)


def test_token_without_kid_counts_if_there_is_one_key() -> None:
    bare = token(headers={})
    assert checker().find(bare)
    assert checker(source=jwks(jwk("ES256"), jwk("ES256", "two", OTHER))).find(bare) is None


@pytest.mark.parametrize(
    ("claim", "claims", "roles"),
    [
        (
            "roles",
            {"roles": ["infer", "admin"]},
            {CallerRole.INFER, CallerRole.ADMIN, CallerRole.READ},
        ),
        ("roles", {"roles": []}, set()),
        ("roles", {"roles": None}, set()),
        ("roles", {"roles": {"infer": True}}, set()),
        ("roles", {"roles": [7, None, ["infer"], "read"]}, {CallerRole.READ}),
        ("roles", {"roles": ["INFER", "root", ""]}, set()),
        ("scope", {"scope": "openid infer  read"}, {CallerRole.INFER, CallerRole.READ}),
        ("realm.roles", {"realm": {"roles": ["enrol"]}}, {CallerRole.ENROL}),
        ("realm.roles", {"realm": "x"}, set()),
        ("https://x.example/roles", {"https://x.example/roles": ["read"]}, {CallerRole.READ}),
    ],
)
def test_claim_of_roles_in_any_form(
    claim: str, claims: dict[str, Any], roles: set[CallerRole]
) -> None:
    found = checker(roles_claim=claim).find(token(**claims))
    assert found is not None
    assert found.roles == roles


def test_words_stand_for_roles() -> None:
    tokens = checker(roles={"faces-users": CallerRole.INFER, "faces-admins": CallerRole.ADMIN})
    found = tokens.find(token(roles=["faces-users", "admin"]))
    assert found is not None
    assert found.roles == {CallerRole.INFER}


def test_remembered_token_ends_when_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    tokens, good = checker(), token(exp=now + 600)
    assert tokens.find(good)
    monkeypatch.setattr(time, "time", lambda: now + 600 + 20.0)
    assert tokens.find(good)  # clocks differ
    monkeypatch.setattr(time, "time", lambda: now + 600 + 60.0)
    assert tokens.find(good) is None


def test_remembered_token_ends_with_the_key_that_signed_it() -> None:
    keys = Jwks(parse_jwks(jwks(jwk("ES256")), "test", "ES256"))
    tokens = Tokens(keys, TokenRules("ES256", ISSUER, AUDIENCE, "roles", WORDS))
    assert tokens.find(good := token())
    keys.replace(parse_jwks(jwks(jwk("ES256", "two", OTHER)), "test", "ES256"))
    assert tokens.find(good) is None


def test_signature_is_checked_once_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, checked = checker(), []
    decode = jwt.decode

    def noting(*arguments: Any, **options: Any) -> Any:
        checked.append(1)
        return decode(*arguments, **options)

    monkeypatch.setattr(jwt, "decode", noting)
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    several = [token(sub=str(number)) for number in range(5)]
    for each in (several[0], several[0], *several):
        assert tokens.find(each)
    assert len(checked) == 5
    assert tokens.find(several[4])
    assert tokens.find(several[0])
    assert len(checked) == 6
