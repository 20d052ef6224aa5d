"""API keys over the wire: who is admitted to what, what the others are told, and what is logged of it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

import mien
from mien.model_control import ModelControl
from mien.v1 import gallery_pb2
from mien_server.access.gate import Gate
from mien_server.access.keyring import Keyring
from mien_server.access.keys import Entry, KeysFile, new_entry, read_keys
from mien_server.access.roles import METHODS, OPEN, CallerRole
from mien_server.access.watching import Watched
from tests.integration.access_rig import (
    CHECK,
    EMBED,
    INFER,
    REFUSALS,
    STREAM,
    UNLOAD,
    Metadata,
    audit_lines,
    bearer,
    ended,
    fresh_log_limits,  # noqa: F401 - a fixture
    may,
    one_answer,
    served_methods,
)
from tests.unit.triton.triton_world import Running, crops, refusal, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
KNOWN = [new_entry(role.value, (role,), certificate=False) for role in CallerRole]
KEYS = {role: key for role, (_, key) in zip(CallerRole, KNOWN, strict=True)}
REVOKED, REVOKED_KEY = new_entry("revoked", tuple(CallerRole), certificate=False)
_, UNKNOWN_KEY = new_entry("unknown", tuple(CallerRole), certificate=False)
ENTRIES = [
    *(entry for entry, _ in KNOWN),
    REVOKED.model_copy(update={"revoked": "2026-01-01T00:00:00+00:00"}),
]
WRONG: dict[str, Metadata] = {
    "unknown": bearer(UNKNOWN_KEY),
    "revoked": bearer(REVOKED_KEY),
    "wrong secret": bearer(KEYS[CallerRole.INFER][:-4] + "aaaa"),
    "half": bearer(KEYS[CallerRole.INFER][:30]),
    "empty": bearer(""),
    "huge": bearer("x" * 4000),
    "two": bearer(KEYS[CallerRole.INFER]) * 2,
}


@asynccontextmanager
async def guarded(entries: list[Entry] | None = None) -> AsyncIterator[tuple[Running, Keyring]]:
    keyring = Keyring(ENTRIES if entries is None else entries)
    async with serving(gate=Gate(keyring)) as running:
        yield running, keyring


def test_every_method_that_is_served_is_in_the_table_and_no_other() -> None:
    assert METHODS.keys() == served_methods().keys()


def test_security_page_has_the_table() -> None:
    rows = [line.split("|") for line in PAGE.read_text("utf-8").splitlines() if line[:2] == "| "]
    for method, needed in METHODS.items():
        service, _, name = method[1:].rpartition("/")
        assert any(
            f"`{service}`" in row[1] and f"`{name}`" in row[2] and row[3].strip() == f"`{needed}`"
            for row in rows
            if len(row) == 5
        ), method


async def test_every_method_admits_who_has_its_role_and_nobody_else() -> None:
    async with guarded() as (running, _):
        for method, needed in METHODS.items():
            alone = await ended(running.channel, method)
            assert (alone == ("UNAUTHENTICATED",) * 2) == (needed != OPEN), (method, alone)
            for role, key in KEYS.items():
                code, reason = await ended(running.channel, method, bearer(key))
                assert (code not in REFUSALS) == may(role, needed), (method, role, code)
                assert code not in REFUSALS or reason == code


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG.keys())
async def test_all_wrong_keys_get_the_same_answer(sent: Metadata) -> None:
    async with guarded() as (running, _):
        answers = []
        for metadata in (sent, WRONG["unknown"]):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one_answer(running.channel, EMBED, (*metadata, ("x-request-id", "same")))
            error = caught.value
            answers.append((error.code(), error.details(), dict(error.trailing_metadata())))
        assert answers[0] == answers[1]
        assert answers[0][0] is grpc.StatusCode.UNAUTHENTICATED


async def test_answer_without_a_key_says_how_to_send_one() -> None:
    async with guarded() as (running, _):
        with pytest.raises(grpc.aio.AioRpcError, match="authorization: Bearer"):
            await one_answer(running.channel, EMBED)
        other = (("authorization", f"Basic {KEYS[CallerRole.INFER]}"),)
        with pytest.raises(grpc.aio.AioRpcError, match="must be: Bearer KEY"):
            await one_answer(running.channel, EMBED, other)
        lower = (("authorization", f"bearer {KEYS[CallerRole.INFER]}"),)
        assert (await ended(running.channel, EMBED, lower))[0] not in REFUSALS


async def test_refused_call_is_neither_parsed_nor_admitted() -> None:
    async with guarded() as (running, _):
        running.intake.budget.enter(1 << 26)  # nothing fits any more
        broken = await ended(running.channel, EMBED, request=b"\xff" * 100)
        assert broken == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        asked = await ended(running.channel, UNLOAD, bearer(KEYS[CallerRole.INFER]), b"\xff" * 100)
        assert asked == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        known = await ended(running.channel, EMBED, bearer(KEYS[CallerRole.INFER]), b"\xff" * 100)
        assert known == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")


async def test_method_outside_of_the_table_is_open_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(METHODS, EMBED)
    everything, key = new_entry("all", tuple(CallerRole), certificate=False)
    async with guarded([everything]) as (running, _):
        assert (await ended(running.channel, EMBED))[0] == "UNAUTHENTICATED"
        assert (await ended(running.channel, EMBED, bearer(key)))[0] == "PERMISSION_DENIED"


async def test_methods_that_are_not_there_stay_unimplemented() -> None:
    async with guarded() as (running, _):
        for path in ("/mien.v1.FaceService/Guess", "/no.Such/Method"):
            assert await ended(running.channel, path) == ("UNIMPLEMENTED", "")


async def test_server_without_keys_asks_for_none() -> None:
    async with serving() as running:
        assert await ended(running.channel, UNLOAD) == ("OK", "")
        assert await ended(running.channel, CHECK, bearer("anything")) == ("OK", "")
        assert await ended(running.channel, UNLOAD, bearer("anything")) == ("OK", "")


async def test_tritons_own_client_calls_with_a_key() -> None:
    headers = {"authorization": f"Bearer {KEYS[CallerRole.INFER]}"}
    async with guarded() as (running, _):
        assert await running.client.infer("vectors", crops((3, 3, 3)), headers=headers)
        assert (await refusal(running.client.infer("vectors", crops((3, 3, 3)))))[
            0
        ] == "UNAUTHENTICATED"


async def test_sdk_and_mien_models_call_with_a_key() -> None:
    async with guarded() as (running, _):
        address = running.server.address

        def use_models() -> None:
            with ModelControl(address, timeout=20, api_key=KEYS[CallerRole.ADMIN]) as control:
                assert control.index("vectors")  # admin has read in it
                control.unload("vectors")
            with ModelControl(address, timeout=20, api_key=KEYS[CallerRole.READ]) as control:
                assert control.statistics("vectors")
                with pytest.raises(mien.PermissionDenied, match="needs the role admin"):
                    control.unload("vectors")
            with ModelControl(address, timeout=20) as control, pytest.raises(mien.Unauthenticated):
                control.index()

        await asyncio.to_thread(use_models)
        async with mien.AsyncClient(address, token=lambda: KEYS[CallerRole.INFER]) as client:
            assert (await client.embed(b"photo", detector="finder", embedder="vectors:1")).faces
        async with mien.AsyncClient(address, api_key=UNKNOWN_KEY) as client:
            with pytest.raises(mien.Unauthenticated) as caught:
                await client.embed(b"photo")
            assert caught.value.reason == "UNAUTHENTICATED"


async def test_client_works_on_while_keys_change_and_a_broken_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    file = KeysFile(path)
    (first, first_key), (second, second_key) = KNOWN[0], KNOWN[2]
    file.add(first)
    async with guarded(list(read_keys(path))) as (running, keyring):
        watched = Watched("keys", [path], lambda: read_keys(path), keyring.replace)

        async def may_enter(key: str) -> bool:
            return (await ended(running.channel, EMBED, bearer(key)))[0] != "UNAUTHENTICATED"

        failed, stop = [], asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                failed.append(not await may_enter(first_key))

        working = asyncio.create_task(work())
        assert not await may_enter(second_key)
        file.add(second)
        await watched.look()
        assert await may_enter(second_key)
        intact = path.read_bytes()
        for damage in (b"{", b"", intact[:-20]):
            path.write_bytes(damage)
            await watched.look()
            await watched.look()
            assert await may_enter(second_key)
        assert sum("not reloaded" in record.message for record in caplog.records) == 3
        path.write_bytes(intact)
        path.chmod(0o644)
        await watched.look(forced=True)
        assert "chmod 600" in caplog.text
        path.chmod(0o600)
        file.revoke(second.id)
        await watched.look()
        assert not await may_enter(second_key)
        stop.set()
        await working
        assert len(failed) > 5
        assert not any(failed)


async def test_key_that_is_revoked_during_a_stream_ends_it_after_the_answers_before() -> None:
    request = service_pb2.ModelInferRequest(model_name="nobody", id="before").SerializeToString()
    async with guarded() as (running, keyring):
        stream: Any = running.channel.stream_stream(STREAM)(metadata=bearer(KEYS[CallerRole.INFER]))
        await stream.write(request)
        answer = service_pb2.ModelStreamInferResponse.FromString(await stream.read())
        assert answer.infer_response.id == "before"
        keyring.replace([entry for entry in ENTRIES if entry.name != CallerRole.INFER])
        await stream.write(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # Nothing is left behind, and others go on.
        await running.until(lambda: running.intake.budget.count == 0)
        assert await ended(running.channel, STREAM, bearer(KEYS[CallerRole.READ])) == (
            "PERMISSION_DENIED",
            "PERMISSION_DENIED",
        )


async def test_key_that_loses_its_role_during_a_stream_ends_it() -> None:
    entry, key = KNOWN[0]
    async with guarded() as (running, keyring):
        stream: Any = running.channel.stream_stream(STREAM)(metadata=bearer(key))
        await stream.write(b"")
        await stream.read()
        keyring.replace([entry.model_copy(update={"roles": (CallerRole.READ,)})])
        await stream.write(b"")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_every_admin_call_leaves_a_line_with_caller_model_and_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    load = UNLOAD.replace("Unload", "Load")
    named = service_pb2.RepositoryModelLoadRequest(model_name="vectors").SerializeToString()
    admin, infer = bearer(KEYS[CallerRole.ADMIN]), bearer(KEYS[CallerRole.INFER])
    async with guarded() as (running, _):
        await ended(running.channel, UNLOAD, admin, named)
        await ended(running.channel, load, admin, named)
        await ended(running.channel, load, admin, b"\xff")
        await ended(running.channel, load, infer, named)
        await ended(running.channel, load, (), named)
        await ended(running.channel, INFER, infer)
    by_admin = {"caller": "admin", "proof": f"key {KEYS[CallerRole.ADMIN][:17]}", "level": "INFO"}
    by_other = {
        "caller": "infer",
        "proof": f"key {KEYS[CallerRole.INFER][:17]}",
        "level": "WARNING",
    }
    by_nobody = {"caller": "anonymous", "proof": "", "level": "WARNING"}
    assert audit_lines(caplog) == [
        by_admin | {"method": UNLOAD, "subject": "vectors", "outcome": "OK"},
        by_admin | {"method": load, "subject": "vectors", "outcome": "FAILED_PRECONDITION"},
        by_admin | {"method": load, "subject": "", "outcome": "INVALID_ARGUMENT"},
        by_other | {"method": load, "subject": "", "outcome": "PERMISSION_DENIED"},
        by_nobody | {"method": load, "subject": "", "outcome": "UNAUTHENTICATED"},
    ]


async def test_calls_that_change_or_hand_out_leave_a_line_whatever_the_level_and_others_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    everything, key = new_entry("all", tuple(CallerRole), certificate=False)
    async with guarded([everything]) as (running, _):
        for method in METHODS:
            await ended(running.channel, method, bearer(key))
    told = {str(line["method"]) for line in audit_lines(caplog)}
    assert {method.rpartition("/")[2] for method in told if "Gallery" in method} == {
        *("CreateCollection", "DeleteCollection", "Enrol", "MoveFaces", "DeleteFaces"),
        *("DeletePerson", "Reembed", "ExportFaces", "GetCrop"),
    }
    assert {method.rpartition("/")[2] for method in told if "Inference" in method} == {
        *("RepositoryModelLoad", "RepositoryModelUnload", "LogSettings", "TraceSetting"),
        *(
            f"{kind}SharedMemory{what}"
            for kind in ("System", "Cuda")
            for what in ("Status", "Register", "Unregister")
        ),
    }
    assert {line["caller"] for line in audit_lines(caplog)} == {"all"}
    assert len(told) == 9 + 10 == len(audit_lines(caplog))


async def test_line_of_a_gallery_names_the_collection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    service = gallery_pb2.DESCRIPTOR.services_by_name["GalleryService"]
    async with serving() as running:
        for method in service.methods:
            name = "name" if method.name == "CreateCollection" else "collection"
            if name in method.input_type.fields_by_name:
                kind: Any = getattr(gallery_pb2, method.input_type.name)
                request = kind(**{name: "staff"}).SerializeToString()
                await ended(running.channel, f"/{service.full_name}/{method.name}", (), request)
    lines = audit_lines(caplog)
    assert len(lines) == 9
    # Nobody has to prove anything here.
    assert {(line["caller"], line["proof"]) for line in lines} == {("anonymous", "")}
    assert {line["subject"] for line in lines} == {"staff"}


async def test_flood_of_wrong_keys_is_refused_counted_and_summarised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with guarded() as (running, _):
        calls = (ended(running.channel, EMBED, WRONG["wrong secret"]) for _ in range(100))
        assert set(await asyncio.gather(*calls)) == {("UNAUTHENTICATED", "UNAUTHENTICATED")}
        labels = {
            "grpc_service": "mien.v1.FaceService",
            "grpc_method": "Embed",
            "reason": "UNAUTHENTICATED",
        }
        assert running.registry.get_sample_value("mien_errors_total", labels) == 100
    assert len(caplog.records) <= 10


async def test_no_key_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with guarded() as (running, _):
        for metadata in (*WRONG.values(), *map(bearer, KEYS.values())):
            for method in (EMBED, UNLOAD, STREAM):
                await ended(running.channel, method, metadata)
    told = "\n".join(str(vars(record)) for record in caplog.records)
    for key in (*KEYS.values(), REVOKED_KEY, UNKNOWN_KEY):
        assert key[18:] not in told
        assert key[-20:-4] not in told
