"""What can go wrong with a call, as one tree of exceptions under `MienError`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mien.unreachable import explanation

DOMAIN = "mien"


class MienError(Exception):
    """A call that brought no answer.

    Attributes:
        message: what is wrong and what to do about it, for a person.
        code: the gRPC status code.
        reason: stable and machine-readable, such as "FACE_NOT_FOUND"; the name of the code where
            neither the server nor the SDK knows more.
        field: dotted path of the request field at fault (`image.encoded`), or "".
        metadata: further facts from the server, such as the `incident` to look for in its log.
        method: the method called ("Detect"), or "" for what was refused before any call.
        retry_after: seconds after which another try has a chance, or None.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    # All but the message are optional, so that these exceptions can be pickled.
    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        method: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason or self.code.name
        self.field = field
        self.metadata = dict(metadata or {})
        self.method = method
        self.retry_after = retry_after

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.reason, self.field, self.method)))
        return f"{self.message} [{where}]"

    def as_dict(self) -> dict[str, Any]:
        """`code`, `reason`, `message`, `field`, `metadata` and `retry_after`, ready for JSON."""
        return {
            "code": self.code.name,
            "reason": self.reason,
            "message": self.message,
            "field": self.field,
            "metadata": self.metadata,
            "retry_after": self.retry_after,
        }


class InvalidRequest(MienError):
    """The request itself is wrong: not an image, too large, an option out of range. Do not retry."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class FailedPrecondition(MienError):
    """The request is well formed, but what it asks for does not hold."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class FaceNotFound(FailedPrecondition):
    """The photo has no face."""


class MultipleFaces(FailedPrecondition):
    """The photo has several faces, and the policy `require_one` asked for the only one."""


class FaceTooSmall(FailedPrecondition):
    """The photo has no face as large as `min_face_size` asks."""


class EmbeddingMismatch(FailedPrecondition):
    """The embeddings come from different models or versions and cannot be compared."""


class RequirementUnmet(FailedPrecondition):
    """A face does not fulfil what the call requires of it; the message has the figures."""


class LowQuality(FailedPrecondition):
    """The face would make the gallery worse. The message has the figures."""


class NotInGallery(MienError):
    """There is no such gallery, person or enrolled face; the reason says which."""

    default_code = grpc.StatusCode.NOT_FOUND


class GalleryExists(MienError):
    """There is a gallery of this name already."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class GalleryFull(MienError):
    """The server has no room for more faces. What it has is still found; trying again is of no use."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ModelNotFound(MienError):
    """The server has no such model or version."""

    default_code = grpc.StatusCode.NOT_FOUND


class Unavailable(MienError):
    """The server cannot be reached, or is shutting down.

    The SDK has already tried again, unless the server had begun with the call (reason SERVER_STOPPED).
    """

    default_code = grpc.StatusCode.UNAVAILABLE


class ModelNotReady(Unavailable):
    """The model exists and cannot serve now: loading, failed, or without weights."""


class Overloaded(MienError):
    """The server has more to do than it takes on. Try again after `retry_after` seconds."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(MienError):
    """No answer within the timeout."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(MienError):
    """The call was given up, as happens when its client is closed by another thread or task."""

    default_code = grpc.StatusCode.CANCELLED


class Unauthenticated(MienError):
    """The server wants credentials that the call did not bring."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(MienError):
    """The server knows the caller and does not allow this call."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class WrongServer(MienError):
    """A gRPC server answers at the address, but it does not offer this method of mien."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class ServerError(MienError):
    """The server failed. `metadata["incident"]`, where it is there, names the line in its log."""

    default_code = grpc.StatusCode.INTERNAL


_BY_REASON: Mapping[str, type[MienError]] = {
    "FACE_NOT_FOUND": FaceNotFound,
    "MULTIPLE_FACES": MultipleFaces,
    "FACE_TOO_SMALL": FaceTooSmall,
    "EMBEDDING_MISMATCH": EmbeddingMismatch,
    "MODEL_NOT_READY": ModelNotReady,
    "LOW_QUALITY": LowQuality,
    "REQUIREMENT_UNMET": RequirementUnmet,
    "NO_CROPS": FailedPrecondition,
    "COLLECTION_NOT_FOUND": NotInGallery,
    "PERSON_NOT_FOUND": NotInGallery,
    "ENROLLED_FACE_NOT_FOUND": NotInGallery,
    "GALLERY_FULL": GalleryFull,
    "BACKEND_ERROR": ServerError,
}

_BY_CODE: Mapping[grpc.StatusCode, type[MienError]] = {
    kind.default_code: kind
    for kind in (
        InvalidRequest,
        FailedPrecondition,
        GalleryExists,
        ModelNotFound,
        Unavailable,
        Overloaded,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        WrongServer,
    )
}


def from_rpc_error(
    error: grpc.RpcError, *, method: str, address: str, timeout: float, encrypted: bool = False
) -> MienError:
    """The exception for a failed call, from its status and the `google.rpc` details it carries.

    May wait for up to some 2 seconds to find out why a server cannot be reached.

    Args:
        error: what gRPC raised. That the call was cancelled is taken for the server's doing.
        method: the method called.
        address: the server's.
        timeout: what the call had, in seconds.
        encrypted: whether it went over TLS.
    """
    call = cast(grpc.Call, error)  # every RpcError that a call raises is one, of grpc.aio too
    code, text = call.code(), call.details() or ""
    details = _details(call)
    info = error_details_pb2.ErrorInfo()
    if not _unpack(details, info) or info.domain != DOMAIN:
        return _without_reason(
            code, text, method=method, address=address, timeout=timeout, encrypted=encrypted
        )
    bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    fields = bad_request.field_violations if _unpack(details, bad_request) else []
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, ServerError)
    return kind(
        text,
        code=code,
        reason=info.reason,
        field=fields[0].field if fields else "",
        metadata=info.metadata,
        method=method,
        retry_after=(
            retry.retry_delay.ToTimedelta().total_seconds() if _unpack(details, retry) else None
        ),
    )


def refused(message: str, *, reason: str, field: str, method: str) -> MienError:
    """The exception for a part of a call that was refused while the call was answered."""
    kind = _BY_REASON.get(reason, InvalidRequest)
    return kind(message, reason=reason, field=field, method=method)


def _details(call: grpc.Call) -> Sequence[Any]:
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):
        # Somebody else's details: the status itself still says what happened.
        return ()
    return () if status is None else status.details


def _unpack(details: Sequence[Any], message: Message) -> bool:
    """Fills `message` from the first detail of its type; whether there is one."""
    return any(detail.Unpack(message) for detail in details)


def _without_reason(
    code: grpc.StatusCode, text: str, *, method: str, address: str, timeout: float, encrypted: bool
) -> MienError:
    """The exception for a status that did not come from mien: from gRPC, a proxy, another server."""
    text = text.rstrip(".")
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            reason, message = explanation(text, address=address, encrypted=encrypted)
            return Unavailable(message, reason=reason, method=method)
        case grpc.StatusCode.CANCELLED:  # not by this side, which would have been told otherwise
            return Unavailable(
                f"the server at {address} broke the call off, as one does that stops. Try again.",
                code=code,
                reason="SERVER_STOPPED",
                method=method,
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return WrongServer(
                f"the server at {address} is no mien server, or an older one ({text}). Check the"
                " address: it must be the port that `mien-server serve` prints.",
                reason="WRONG_SERVER",
                method=method,
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"no answer from {address} within {timeout:g} s. Allow more with the timeout.",
                method=method,
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return InvalidRequest(
                f"the request is larger than the server at {address} takes (its --max-message-bytes)."
                " Scale the photo down, or save it as JPEG.",
                reason="IMAGE_TOO_LARGE",
                # Which side of Verify is at fault, gRPC does not say.
                field="" if method == "Verify" else "image",
                method=method,
            )
    kind = _BY_CODE.get(code, ServerError)
    return kind(text or f"{address} answered {code.name}", code=code, method=method)
