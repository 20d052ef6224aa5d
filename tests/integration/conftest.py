"""What tests against the real server share: a stub, a good photo, and the check of a refusal."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mien.v1 import face_pb2, face_pb2_grpc

Request = face_pb2.DetectRequest | face_pb2.EmbedRequest | face_pb2.VerifyRequest


@pytest.fixture(scope="module")
def stub(server_address: str) -> Iterator[face_pb2_grpc.FaceServiceStub]:
    """A stub of the shared server, without a limit on what it sends."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server_address, options) as channel:
        yield face_pb2_grpc.FaceServiceStub(channel)


@pytest.fixture(scope="module")
def photo(sample: Callable[[str], Path]) -> bytes:
    """A JPEG with one face."""
    return sample("person_a_2").read_bytes()


@pytest.fixture
def refused(
    stub: face_pb2_grpc.FaceServiceStub, photo: bytes
) -> Callable[[Request, grpc.StatusCode, str, str], None]:
    """Checks that a request is refused with this code, reason and field, and the next one answered."""

    def check(request: Request, code: grpc.StatusCode, reason: str, field: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            _send(stub, request)
        status = rpc_status.from_call(cast(grpc.Call, caught.value))
        assert status is not None, caught.value
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info) or detail.Unpack(bad)
        told = (caught.value.code(), info.reason, [v.field for v in bad.field_violations])
        assert told == (code, reason, [field]), caught.value.details()
        assert info.domain == "mien"
        good = face_pb2.DetectRequest(image=face_pb2.Image(encoded=photo))
        assert len(stub.Detect(good, timeout=60).faces) == 1

    return check


def _send(stub: face_pb2_grpc.FaceServiceStub, request: Request) -> Any:
    match request:
        case face_pb2.DetectRequest():
            return stub.Detect(request, timeout=60)
        case face_pb2.EmbedRequest():
            return stub.Embed(request, timeout=60)
        case _:
            return stub.Verify(request, timeout=60)
