"""The one map from errors to gRPC statuses; docs/errors.md is its description for callers."""

import uuid
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mien_server.errors import (
    AlreadyInGallery,
    CallerLimit,
    GalleryFull,
    GalleryUnavailable,
    InvalidRequest,
    MienError,
    ModelNotFound,
    ModelNotReady,
    NotInGallery,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unmet,
)
from mien_server.scheduling import errors as scheduling

DOMAIN = "mien"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata of gRPC's retry design (A6). A negative number tells clients not to try again, whatever
their policy says."""

DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_BYTES = 600
"""How long a message on the wire may be. It may quote the request, and peers accept 8 KiB of metadata
altogether."""

MAX_FIELD_BYTES = 200
"""How long the path of a field may be. It may hold a key of the request."""

_CODES: dict[type[MienError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unmet: grpc.StatusCode.FAILED_PRECONDITION,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    CallerLimit: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotInGallery: grpc.StatusCode.NOT_FOUND,
    AlreadyInGallery: grpc.StatusCode.ALREADY_EXISTS,
    GalleryFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    GalleryUnavailable: grpc.StatusCode.UNAVAILABLE,
}


class Unimplemented(Exception):
    """A method that is not served. UNIMPLEMENTED on the wire; the message says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a caller is told of an error.

    Attributes:
        reason: goes into `google.rpc.ErrorInfo`.
        message: for a person; cut to `MAX_MESSAGE_BYTES` of UTF-8.
        field: path of the request field at fault, or "". It becomes a `google.rpc.BadRequest` and is cut
            to `MAX_FIELD_BYTES`.
        retry_after: seconds, or None. It becomes a `google.rpc.RetryInfo`.
        lasting: trying again soon is of no use, although the code looks like it.
        incident: the id of the log line that tells the rest, or "".
        unexpected: nobody raised the error on purpose, so it is a defect of the server.
        request_id: the name of the call in the server's log, or "".
    """

    code: grpc.StatusCode
    reason: Reason
    message: str
    field: str = ""
    retry_after: float | None = None
    lasting: bool = False
    incident: str = ""
    unexpected: bool = False
    request_id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _cut(self.message, MAX_MESSAGE_BYTES))
        object.__setattr__(self, "field", _cut(self.field, MAX_FIELD_BYTES))

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The `google.rpc.Status` with its details, as gRPC carries it; and whether not to try again."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        if self.incident:
            info.metadata["incident"] = self.incident
        if self.request_id:
            info.metadata["request_id"] = self.request_id
        details = [_packed(info)]
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message, reason=self.reason
            )
            details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after * 1e9))
            details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message, details=details)
        sent: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
        return (*sent, (PUSHBACK_KEY, "-1")) if self.lasting else sent


def _cut(text: str, size: int) -> str:
    """The text in at most `size` bytes of UTF-8."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) > size:
        raw = raw[: size - 3] + "…".encode()
    return raw.decode("utf-8", "ignore")


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def fault_of(error: Exception) -> Fault:
    """What a caller is told of `error`. Of one that nobody raised on purpose it hears nothing."""
    match error:
        case MienError():
            lasting = isinstance(error, ModelNotReady) and error.lasting
            return Fault(
                _code(error),
                error.reason,
                error.message,
                field=error.field,
                retry_after=error.retry_after
                if isinstance(error, CallerLimit | GalleryUnavailable)
                else None,
                lasting=lasting,
            )
        case Unimplemented():
            return Fault(grpc.StatusCode.UNIMPLEMENTED, Reason.UNIMPLEMENTED, str(error))
        case scheduling.QueueFull():
            return Fault(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                Reason.QUEUE_FULL,
                str(error),
                retry_after=error.retry_after,
            )
        case scheduling.Expired():
            return Fault(grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED, str(error))
        case scheduling.Draining():
            return Fault(grpc.StatusCode.UNAVAILABLE, Reason.DRAINING, str(error))
        case scheduling.Unavailable():
            return Fault(grpc.StatusCode.UNAVAILABLE, Reason.MODEL_NOT_READY, str(error))
        case scheduling.RowFailed():
            return Fault(
                grpc.StatusCode.INTERNAL, Reason.BACKEND_ERROR, str(error), incident=error.incident
            )
        case _:
            incident = uuid.uuid4().hex[:12]
            return Fault(
                grpc.StatusCode.INTERNAL,
                Reason.INTERNAL,
                f"The server failed in a way nobody foresaw; its log tells more: {incident}.",
                incident=incident,
                unexpected=True,
            )


def _code(error: MienError) -> grpc.StatusCode:
    return next(code for kind, code in _CODES.items() if isinstance(error, kind))
