"""Every row of the error table over the wire where callers have to prove who they are, by key or by token."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2

from mien.v1 import face_pb2
from mien_server.access.gate import Gate
from mien_server.access.jwks import Jwks, parse_jwks
from mien_server.access.keyring import Keyring
from mien_server.access.keys import new_entry
from mien_server.access.limits import CallerLimits
from mien_server.access.roles import CallerRole
from mien_server.access.tokens import TokenRules, Tokens
from mien_server.errors import (
    AlreadyInGallery,
    GalleryFull,
    GalleryUnavailable,
    InvalidRequest,
    NotInGallery,
    Reason,
    Unmet,
)
from mien_server.scheduling.errors import Expired
from tests.fuzz.run import table
from tests.integration.access_rig import (
    EMBED,
    INFER,
    UNLOAD,
    Metadata,
    bearer,
    fresh_log_limits,  # noqa: F401 - a fixture
    one_answer,
)
from tests.unit.access.token_rig import AUDIENCE, ISSUER, jwk, jwks, token
from tests.unit.triton.triton_world import CROP, Running, serving

ALL = tuple(CallerRole)
ENTRY, KEY = new_entry("by key", ALL, certificate=False)
READER, READ_KEY = new_entry("reader", (CallerRole.READ,), certificate=False)
RULES = TokenRules("ES256", ISSUER, AUDIENCE, "roles", {role.value: role for role in CallerRole})
KNOWN = {"key": KEY, "token": token(roles=list(ALL))}
LESSER = {"key": READ_KEY, "token": token(roles=[CallerRole.READ])}
WRONG = {"key": KEY[:-4] + "aaaa", "token": token(roles=list(ALL), iss="https://other.example")}
RETRIED = {"QUEUE_FULL", "CALLER_LIMIT", "GALLERY_UNAVAILABLE"}

LOAD = UNLOAD.replace("Unload", "Load")
SHARED_MEMORY = "/inference.GRPCInferenceService/SystemSharedMemoryRegister"
PHOTO = face_pb2.EmbedRequest(image=face_pb2.Image(encoded=b"photo")).SerializeToString()
Case = tuple[str, bytes, Callable[[Running], None]]


def as_it_is(_: Running) -> None:
    """The world needs no preparation."""


def infer(model: str) -> bytes:
    """A request for a black crop."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="face", datatype="UINT8", shape=[1, *CROP])
    request.raw_input_contents.append(bytes(112 * 112 * 3))
    return cast(bytes, request.SerializeToString())


def load() -> bytes:
    return cast(
        bytes, service_pb2.RepositoryModelLoadRequest(model_name="vectors").SerializeToString()
    )


def raising(error: Exception) -> Case:
    """Embed of a photo, in which the pipeline raises this."""

    async def embed(*_: object, **__: object) -> Any:
        raise error

    def prepare(running: Running) -> None:
        running.world.embed = embed  # type: ignore[method-assign]

    return EMBED, PHOTO, prepare


def wrong(reason: Reason) -> Case:
    return raising(InvalidRequest(reason, "so it is", field="image.encoded"))


def unmet(reason: Reason) -> Case:
    return raising(Unmet(reason, "so it is"))


def refuse_control(running: Running) -> None:
    def refuse(name: str) -> Any:
        raise Unmet(Reason.MODEL_CONTROL_REFUSED, "not in this mode")

    running.world.load = refuse  # type: ignore[method-assign]


def fill(running: Running) -> None:
    running.intake.budget.enter(1 << 26)


def drain(running: Running) -> None:
    running.intake.budget.enter(1)  # a call in progress, for which draining waits
    draining = asyncio.ensure_future(running.intake.drain(0))
    draining.add_done_callback(lambda task: task.result())


CASES: dict[str, Case] = {
    "INVALID_REQUEST": (EMBED, b"\xff\xff\xff", as_it_is),
    **{
        reason: wrong(Reason(reason))
        for reason in (
            *("INVALID_IMAGE", "UNSUPPORTED_FORMAT", "IMAGE_TOO_LARGE"),
            *("INVALID_OPTION", "INVALID_EMBEDDING"),
        )
    },
    **{
        reason: unmet(Reason(reason))
        for reason in (
            *("FACE_NOT_FOUND", "MULTIPLE_FACES", "FACE_TOO_SMALL", "EMBEDDING_MISMATCH"),
            "REQUIREMENT_UNMET",
        )
    },
    "MODEL_NOT_FOUND": (INFER, infer("nobody"), as_it_is),
    "MODEL_NOT_READY": (INFER, infer("asleep"), as_it_is),
    "MODEL_LOAD_FAILED": (LOAD, load(), as_it_is),
    "MODEL_CONTROL_REFUSED": (LOAD, load(), refuse_control),
    "DRAINING": (EMBED, PHOTO, drain),
    "QUEUE_FULL": (EMBED, PHOTO, fill),
    "DEADLINE_EXCEEDED": raising(Expired("too late")),
    "UNIMPLEMENTED": (SHARED_MEMORY, b"", as_it_is),
    "BACKEND_ERROR": (INFER, infer("vectors"), as_it_is),
    **{
        reason: raising(NotInGallery(Reason(reason), "not there", field="collection"))
        for reason in ("COLLECTION_NOT_FOUND", "PERSON_NOT_FOUND", "ENROLLED_FACE_NOT_FOUND")
    },
    "COLLECTION_EXISTS": raising(
        AlreadyInGallery(Reason.COLLECTION_EXISTS, "there already", field="name")
    ),
    "NO_CROPS": unmet(Reason.NO_CROPS),
    "GALLERY_FULL": raising(GalleryFull("no room")),
    "GALLERY_UNAVAILABLE": raising(GalleryUnavailable("away")),
    "INTERNAL": raising(KeyError("a secret of the server")),
}
"""How each row that a known caller can meet comes about. The rows of credentials themselves are below."""


def gate(rate: float | None = None) -> Gate:
    known = Jwks(parse_jwks(jwks(jwk("ES256")), "test", "ES256"))
    limits = CallerLimits(rate=rate, burst=1, at_once=None)
    return Gate(Keyring([ENTRY, READER]), Tokens(known, RULES), limits)


async def refused(
    running: Running, method: str, request: bytes, sent: Metadata
) -> tuple[str, str, dict[str, str]]:
    """Status, reason and the metadata of ErrorInfo; the other details are checked against the reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await one_answer(running.channel, method, (*sent, ("x-request-id", "mine")), request)
    error = caught.value
    assert dict(error.trailing_metadata() or ())["x-request-id"] == "mine"
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    again = any(detail.Unpack(retry) for detail in status.details)
    assert again == (info.reason in RETRIED)
    assert "secret" not in str(status)
    assert info.domain == "mien"
    return error.code().name, info.reason, dict(info.metadata)


def test_every_row_of_the_table_has_its_case_here() -> None:
    rows = table()
    # What is wrong with one face of several comes in its own result.
    assert {reason for _, reason in rows} == set(Reason) - {Reason.LOW_QUALITY}
    assert {reason for _, reason in rows} == CASES.keys() | {
        *("CALLER_LIMIT", "UNAUTHENTICATED", "PERMISSION_DENIED")
    }


@pytest.mark.parametrize("reason", CASES)
async def test_row_is_told_to_who_is_known_and_to_nobody_else(reason: str) -> None:
    method, request, prepare = CASES[reason]
    async with serving(gate=gate()) as running:
        prepare(running)
        for credential in KNOWN.values():
            code, told, facts = await refused(running, method, request, bearer(credential))
            assert (code, told) in table()
            assert told == reason
            assert facts.pop("request_id") == "mine"
            assert facts.keys() == ({"incident"} if code == "INTERNAL" else set())
        for sent in ((), *map(bearer, WRONG.values())):
            code, told, _ = await refused(running, method, request, sent)
            assert (code, told) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        for credential in LESSER.values():
            code, told, _ = await refused(running, method, request, bearer(credential))
            assert (code, told) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


async def test_limit_of_a_caller_is_told_to_both_kinds() -> None:
    async with serving(gate=gate(rate=0.01)) as running:
        for credential in KNOWN.values():
            first = await refused(running, EMBED, b"\xff", bearer(credential))
            assert first[1] == "INVALID_REQUEST"
            code, told, _ = await refused(running, EMBED, b"\xff", bearer(credential))
            assert (code, told) == ("RESOURCE_EXHAUSTED", "CALLER_LIMIT")
