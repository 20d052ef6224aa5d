"""Tokens over the wire, beside keys: every refusal, roles, renewal, and a stream whose token ends."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import mien
from mien_server.access.gate import Gate
from mien_server.access.jwks import Jwks, parse_jwks
from mien_server.access.keyring import Keyring
from mien_server.access.keys import new_entry
from mien_server.access.roles import METHODS, OPEN, CallerRole
from mien_server.access.tokens import TokenRules, Tokens
from tests.integration.access_rig import (
    EMBED,
    REFUSALS,
    STREAM,
    UNLOAD,
    audit_lines,
    bearer,
    ended,
    fresh_log_limits,  # noqa: F401 - a fixture
    may,
    one_answer,
)
from tests.unit.access.token_rig import AUDIENCE, ISSUER, OTHER, jwk, jwks, token
from tests.unit.triton.triton_world import Running, serving

ENTRY, KEY = new_entry("by key", (CallerRole.INFER,), certificate=False)
RULES = TokenRules("ES256", ISSUER, AUDIENCE, "roles", {role.value: role for role in CallerRole})


@asynccontextmanager
async def guarded(*, keys: bool = True) -> AsyncIterator[tuple[Running, Jwks]]:
    known = Jwks(parse_jwks(jwks(jwk("ES256")), "test", "ES256"))
    gate = Gate(Keyring([ENTRY]) if keys else None, Tokens(known, RULES))
    async with serving(gate=gate) as running:
        yield running, known


async def test_every_method_admits_tokens_with_its_role_and_no_others() -> None:
    async with guarded(keys=False) as (running, _):
        for method, needed in METHODS.items():
            assert ((await ended(running.channel, method))[0] == REFUSALS[0]) == (needed != OPEN)
            for role in CallerRole:
                sent = bearer(token(roles=[role.value]))
                code, reason = await ended(running.channel, method, sent)
                assert (code not in REFUSALS) == may(role, needed), (method, role, code)
                assert code not in REFUSALS or reason == code


async def test_all_tokens_that_do_not_hold_get_the_same_answer_as_a_wrong_key() -> None:
    past = int(time.time()) - 60
    wrong = [
        token(exp=past),
        token(nbf=past + 600),
        token(iss="https://other.example"),
        token(aud="other"),
        token(key=OTHER),
        token("EdDSA"),
        token(headers={"kid": "two"}),
        token()[:-4],
        "no-token",
        "a.b.c",
        KEY[:-4] + "aaaa",
        KEY,
    ]
    answers = set()
    async with guarded(keys=False) as (running, _):
        for each in wrong:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one_answer(running.channel, EMBED, (*bearer(each), ("x-request-id", "same")))
            error = caught.value
            answers.add((error.code(), error.details(), tuple(error.trailing_metadata() or ())))
    ((code, _, _),) = answers
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_keys_and_tokens_work_side_by_side() -> None:
    async with guarded() as (running, _):
        for credential in (KEY, token()):
            assert (await ended(running.channel, EMBED, bearer(credential)))[0] not in REFUSALS
            assert (await ended(running.channel, UNLOAD, bearer(credential)))[0] == REFUSALS[1]
        assert (await ended(running.channel, EMBED, bearer(token(roles=[]))))[0] == REFUSALS[1]


async def test_sdk_renews_a_token_between_calls() -> None:
    tokens = iter([token(), token(exp=int(time.time()) - 60), token()])
    options: dict[str, Any] = {"detector": "finder", "embedder": "vectors:1"}
    async with (
        guarded() as (running, _),
        mien.AsyncClient(running.server.address, token=lambda: next(tokens)) as client,
    ):
        assert (await client.embed(b"photo", **options)).faces
        with pytest.raises(mien.Unauthenticated):
            await client.embed(b"photo", **options)
        assert (await client.embed(b"photo", **options)).faces


async def test_token_that_ends_during_a_stream_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with guarded() as (running, _):
        stream: Any = running.channel.stream_stream(STREAM)(metadata=bearer(token()))
        await stream.write(b"")
        await stream.read()
        later = time.time() + 700
        monkeypatch.setattr(time, "time", lambda: later)
        await stream.write(b"")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_keys_of_the_issuer_change_while_a_client_works() -> None:
    async with guarded() as (running, known):
        old, new = token(), token(key=OTHER, headers={"kid": "two"})
        assert (await ended(running.channel, EMBED, bearer(new)))[0] == REFUSALS[0]
        assert known.missed  # which has them fetched again
        both = jwks(jwk("ES256"), jwk("ES256", "two", OTHER))
        known.replace(parse_jwks(both, "test", "ES256"))
        for each in (old, new):
            assert (await ended(running.channel, EMBED, bearer(each)))[0] not in REFUSALS
        known.replace(parse_jwks(jwks(jwk("ES256", "two", OTHER)), "test", "ES256"))
        assert (await ended(running.channel, EMBED, bearer(old)))[0] == REFUSALS[0]


async def test_audit_names_the_subject_and_no_token_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    good, bad = token(sub="ops\nFAKE LINE", roles=["admin"]), token(key=OTHER)
    async with guarded() as (running, _):
        await ended(running.channel, UNLOAD, bearer(good))
        await ended(running.channel, UNLOAD, bearer(bad))
    lines = [(line["caller"], line["proof"], line["outcome"]) for line in audit_lines(caplog)]
    assert lines == [("ops\nFAKE LINE", "token", "OK"), ("anonymous", "", "UNAUTHENTICATED")]
    told = "\n".join(str(vars(record)) for record in caplog.records)
    for each in (good, bad):
        assert all(part not in told for part in each.split("."))
