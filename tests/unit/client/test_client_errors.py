"""From a failed call to the exception that tells what went wrong, by both clients."""

import http.server
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mien

Call = Callable[..., Any]
Code = grpc.StatusCode


def info(reason: str, domain: str = "mien", **metadata: str) -> Any:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


def bad_request(*fields: str) -> Any:
    violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(field_violations=[violation(field=f) for f in fields])


def retry_info(seconds: float) -> Any:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (Code.INVALID_ARGUMENT, "INVALID_IMAGE", mien.InvalidRequest),
        (Code.INVALID_ARGUMENT, "UNSUPPORTED_FORMAT", mien.InvalidRequest),
        (Code.INVALID_ARGUMENT, "IMAGE_TOO_LARGE", mien.InvalidRequest),
        (Code.INVALID_ARGUMENT, "INVALID_OPTION", mien.InvalidRequest),
        (Code.INVALID_ARGUMENT, "INVALID_EMBEDDING", mien.InvalidRequest),
        (Code.FAILED_PRECONDITION, "FACE_NOT_FOUND", mien.FaceNotFound),
        (Code.FAILED_PRECONDITION, "MULTIPLE_FACES", mien.MultipleFaces),
        (Code.FAILED_PRECONDITION, "FACE_TOO_SMALL", mien.FaceTooSmall),
        (Code.FAILED_PRECONDITION, "EMBEDDING_MISMATCH", mien.EmbeddingMismatch),
        (Code.FAILED_PRECONDITION, "OF_A_LATER_VERSION", mien.FailedPrecondition),
        (Code.NOT_FOUND, "MODEL_NOT_FOUND", mien.ModelNotFound),
        (Code.UNAVAILABLE, "MODEL_NOT_READY", mien.ModelNotReady),
        (Code.UNAVAILABLE, "DRAINING", mien.Unavailable),
        (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", mien.Overloaded),
        (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", mien.DeadlineExceeded),
        (Code.CANCELLED, "CANCELLED", mien.Cancelled),
        (Code.UNAUTHENTICATED, "UNAUTHENTICATED", mien.Unauthenticated),
        (Code.PERMISSION_DENIED, "PERMISSION_DENIED", mien.PermissionDenied),
        (Code.INTERNAL, "BACKEND_ERROR", mien.ServerError),
        (Code.UNKNOWN, "UNKNOWN", mien.ServerError),
        (Code.DATA_LOSS, "DATA_LOSS", mien.ServerError),
    ],
)
def test_each_status_and_reason_has_its_exception(
    call: Call, peer: Any, code: Code, reason: str, kind: type[mien.MienError]
) -> None:
    peer.refuses(code, "what is wrong", info(reason), times=4)
    with pytest.raises(mien.MienError) as caught:
        call("detect", b"photo")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (code, reason, "what is wrong")
    assert (error.field, error.metadata, error.retry_after) == ("", {}, None)
    assert isinstance(error.__cause__, grpc.RpcError)


@pytest.mark.parametrize("method", ["detect", "embed", "verify"])
def test_an_error_tells_the_method_the_field_and_further_facts(
    call: Call, peer: Any, method: str
) -> None:
    peer.refuses(
        Code.INVALID_ARGUMENT,
        "das ist kein Foto – 写真ではない",
        bad_request("a.image.encoded", "b.image.encoded"),
        info("INVALID_IMAGE", incident="abc123"),
    )
    with pytest.raises(mien.InvalidRequest) as caught:
        call(method, *[b"photo"] * (2 if method == "verify" else 1))
    error = caught.value
    assert error.method == method.capitalize()
    assert error.field == "a.image.encoded"
    assert error.metadata == {"incident": "abc123"}
    assert error.message == "das ist kein Foto – 写真ではない"
    assert str(error) == f"{error.message} [INVALID_IMAGE, a.image.encoded, {error.method}]"


def test_an_overloaded_server_says_when_to_come_back(call: Call, peer: Any) -> None:
    peer.refuses(Code.RESOURCE_EXHAUSTED, "full", info("QUEUE_FULL"), retry_info(0.25))
    with pytest.raises(mien.Overloaded) as caught:
        call("detect", b"photo")
    assert caught.value.retry_after == 0.25
    assert len(peer.received) == 1


def test_call_that_a_server_breaks_off_was_not_cancelled_by_the_caller(
    call: Call, peer: Any
) -> None:
    peer.aborts(Code.CANCELLED, "CANCELLED")
    with pytest.raises(mien.Unavailable, match="stops") as caught:
        call("detect", b"photo")
    assert (caught.value.code, caught.value.reason) == (Code.CANCELLED, "SERVER_STOPPED")


def test_an_overloaded_server_that_does_not_say_when(call: Call, peer: Any) -> None:
    peer.aborts(Code.RESOURCE_EXHAUSTED, "the proxy's quota is used up")
    with pytest.raises(mien.Overloaded, match="quota") as caught:
        call("detect", b"photo")
    assert caught.value.retry_after is None
    assert caught.value.reason == "RESOURCE_EXHAUSTED"


def test_the_details_of_another_domain_are_not_taken_for_ours(call: Call, peer: Any) -> None:
    peer.refuses(Code.PERMISSION_DENIED, "no", info("FACE_NOT_FOUND", domain="proxy.example"))
    with pytest.raises(mien.PermissionDenied) as caught:
        call("detect", b"photo")
    assert caught.value.reason == "PERMISSION_DENIED"


@pytest.mark.parametrize("details", [b"\xff\xff not a status", b"", b"\x08\x03\x12\x05other"])
def test_details_that_cannot_be_read_leave_the_status_itself(
    call: Call, peer: Any, details: bytes
) -> None:
    peer.aborts(Code.INVALID_ARGUMENT, "bad", [("grpc-status-details-bin", details)])
    with pytest.raises(mien.InvalidRequest, match="bad") as caught:
        call("detect", b"photo")
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_a_status_without_a_text_still_has_a_message(call: Call, peer: Any) -> None:
    peer.aborts(Code.DATA_LOSS, "")
    with pytest.raises(mien.ServerError, match=f"{peer.address} answered DATA_LOSS"):
        call("detect", b"photo")


def test_a_servers_own_limit_on_messages_is_no_overload(call: Call, peer: Any) -> None:
    peer.aborts(Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")
    with pytest.raises(mien.InvalidRequest, match="--max-message-bytes") as caught:
        call("detect", b"photo")
    assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_LARGE", "image")
    assert "larger than max" not in caught.value.message
    peer.aborts(Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")
    with pytest.raises(mien.InvalidRequest) as caught:
        call("verify", b"photo", b"photo")
    assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_LARGE", "")


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, kept free."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_no_server_is_said_with_its_address_and_what_to_do(call: Call, nobody: str) -> None:
    with pytest.raises(mien.Unavailable) as caught:
        call("detect", b"photo", address=nobody)
    error = caught.value
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "SERVER_UNREACHABLE")
    for part in (nobody, "mien-server serve", "MIEN_ADDRESS", "refused"):
        assert part in error.message


def test_a_web_server_is_said_with_its_address(call: Call) -> None:
    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            return None

    web = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        address = f"127.0.0.1:{web.server_port}"
        with pytest.raises(mien.Unavailable, match=address) as caught:
            call("detect", b"photo", address=address)
        assert caught.value.reason == "SERVER_UNREACHABLE"
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_another_grpc_server_is_said_with_its_address(call: Call) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(mien.WrongServer, match=address) as caught:
            call("detect", b"photo", address=address)
        assert (caught.value.code, caught.value.reason) == (Code.UNIMPLEMENTED, "WRONG_SERVER")
    finally:
        server.stop(grace=None).wait()


def test_no_answer_in_time_is_said_with_the_timeout(call: Call, peer: Any) -> None:
    release = threading.Event()
    peer.holds(release)
    with pytest.raises(mien.DeadlineExceeded, match=f"{peer.address} within 0.2 s") as caught:
        call("detect", b"photo", timeout=0.2)
    release.set()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert caught.value.reason == "DEADLINE_EXCEEDED"


def test_errors_survive_pickling() -> None:
    error = mien.Overloaded(
        "full",
        reason="QUEUE_FULL",
        field="image",
        metadata={"slot": "sface"},
        method="Embed",
        retry_after=1.5,
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is mien.Overloaded
    assert copy.as_dict() == error.as_dict()
    assert (copy.method, copy.code, str(copy)) == ("Embed", Code.RESOURCE_EXHAUSTED, str(error))


def test_every_exception_is_a_mien_error() -> None:
    exported = [getattr(mien, name) for name in mien.__all__]
    exceptions = [e for e in exported if isinstance(e, type) and issubclass(e, Exception)]
    assert len(exceptions) == 22
    assert all(issubclass(e, mien.MienError) for e in exceptions)
