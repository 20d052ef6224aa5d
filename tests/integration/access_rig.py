"""What tests of access share: calls of any method with any credentials, and what came of them."""

import asyncio
import functools
import logging
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2

from mien.v1 import face_pb2, gallery_pb2
from mien_server.access import keys
from mien_server.access.roles import CallerRole
from mien_server.observability.logging import RateLimit

Metadata = tuple[tuple[str, str], ...]
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
UNLOAD = "/inference.GRPCInferenceService/RepositoryModelUnload"
EMBED = "/mien.v1.FaceService/Embed"
CHECK = "/grpc.health.v1.Health/Check"
REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")


_hash_of = functools.cache(keys._scrypt)
"""Keys are made slow to guess: of those that tests show again and again it is computed once."""


@pytest.fixture(autouse=True)
def fresh_log_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused here does not count against the lines that other tests look for."""
    monkeypatch.setattr(keys, "_scrypt", _hash_of)
    for name in ("mien_server.rpc.calls", "mien_server.audit"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [RateLimit()])


def served_methods() -> dict[str, tuple[bool, bool]]:
    """Every method that a server has: whether requests and whether answers are streams."""
    files = (face_pb2, gallery_pb2, service_pb2, health_pb2, reflection_pb2)
    found = {
        f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    for path in [path for path in found if "v1alpha" in path]:
        found[path.replace("v1alpha", "v1")] = found[path]
    return found


def bearer(credential: str) -> Metadata:
    """The metadata that a credential goes in."""
    return (("authorization", f"Bearer {credential}"),)


async def ended(
    channel: grpc.aio.Channel, method: str, metadata: Metadata = (), request: bytes = b""
) -> tuple[str, str]:
    """The name of the status and the reason with which a call of any method ends, or ("OK", "")."""
    try:
        await one_answer(channel, method, metadata, request)
    except grpc.aio.AioRpcError as error:
        return error.code().name, reason_of(error)
    return "OK", ""


async def one_answer(
    channel: grpc.aio.Channel, method: str, metadata: Metadata = (), request: bytes = b""
) -> bytes:
    """The first answer of a call of any method."""
    untyped: Any = channel
    async with asyncio.timeout(20):
        match served_methods().get(method, (False, False)):
            case (False, False):
                return cast(bytes, await untyped.unary_unary(method)(request, metadata=metadata))
            case (False, True):
                answers: Any = untyped.unary_stream(method)(request, metadata=metadata)
            case _:
                answers = untyped.stream_stream(method)(iter([request]), metadata=metadata)
        first = await answers.read()
        answers.cancel()
        return cast(bytes, first)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of mien's error; "" if it has none."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return ""
    assert info.domain == "mien"
    return str(info.reason)


def may(role: CallerRole | str, needed: CallerRole | str) -> bool:
    """Whether somebody with one role may call a method that needs another."""
    return needed in ("open", role) or (role, needed) == (CallerRole.ADMIN, CallerRole.READ)


def audit_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The facts of the audit's lines so far."""
    facts = ("caller", "proof", "method", "subject", "outcome")
    return [
        {"level": record.levelname} | {fact: getattr(record, fact) for fact in facts}
        for record in caplog.records
        if record.name == "mien_server.audit"
    ]
