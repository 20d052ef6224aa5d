"""What can go wrong with a request, as values: a small tree that knows nothing of gRPC.

`rpc/status.py` maps each class once to a status code; docs/errors.md lists the reasons. Faults of the
queue (full, expired, draining, failed row) are `scheduling.errors`, mapped at the same place.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Stable, machine-readable reasons: the `reason` of `google.rpc.ErrorInfo`."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_IMAGE = "INVALID_IMAGE"
    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    INVALID_OPTION = "INVALID_OPTION"
    INVALID_EMBEDDING = "INVALID_EMBEDDING"
    FACE_NOT_FOUND = "FACE_NOT_FOUND"
    MULTIPLE_FACES = "MULTIPLE_FACES"
    FACE_TOO_SMALL = "FACE_TOO_SMALL"
    EMBEDDING_MISMATCH = "EMBEDDING_MISMATCH"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    MODEL_LOAD_FAILED = "MODEL_LOAD_FAILED"
    MODEL_CONTROL_REFUSED = "MODEL_CONTROL_REFUSED"


class MienError(Exception):
    """A request that cannot be answered, and why.

    Attributes:
        reason: the stable reason.
        message: one or two sentences for a person: what is wrong and what to do about it.
        field: dotted path of the request field at fault (`image.encoded`, `b.embedding.values`), or "".
    """

    def __init__(self, reason: Reason, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field


class InvalidRequest(MienError):
    """The request itself is wrong, whatever the server's state. INVALID_ARGUMENT on the wire."""


class Unmet(MienError):
    """The request is well formed but what it asks for does not hold. FAILED_PRECONDITION."""


class ModelNotFound(MienError):
    """No such model or version. NOT_FOUND on the wire."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(Reason.MODEL_NOT_FOUND, message, field=field)


class ModelNotReady(MienError):
    """The model exists and cannot serve now (loading, failed, no weights). UNAVAILABLE on the wire.

    Attributes:
        lasting: it is not being loaded either, so that trying again soon is of no use.
    """

    def __init__(self, message: str, *, field: str = "", lasting: bool = False) -> None:
        super().__init__(Reason.MODEL_NOT_READY, message, field=field)
        self.lasting = lasting
