"""What can go wrong with a request, as values: a small tree that knows nothing of gRPC.

`rpc/status.py` maps each class once to a status code, and docs/errors.md lists the reasons. What can go
wrong in a queue (it is full, the call expires, the server drains, a row fails) is in `scheduling.errors`,
which knows nothing of this module; `rpc/status.py` maps that, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
    LOW_QUALITY = "LOW_QUALITY"
    REQUIREMENT_UNMET = "REQUIREMENT_UNMET"
    NO_CROPS = "NO_CROPS"
    COLLECTION_NOT_FOUND = "COLLECTION_NOT_FOUND"
    COLLECTION_EXISTS = "COLLECTION_EXISTS"
    PERSON_NOT_FOUND = "PERSON_NOT_FOUND"
    ENROLLED_FACE_NOT_FOUND = "ENROLLED_FACE_NOT_FOUND"
    GALLERY_FULL = "GALLERY_FULL"
    GALLERY_UNAVAILABLE = "GALLERY_UNAVAILABLE"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    MODEL_LOAD_FAILED = "MODEL_LOAD_FAILED"
    MODEL_CONTROL_REFUSED = "MODEL_CONTROL_REFUSED"
    QUEUE_FULL = "QUEUE_FULL"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DRAINING = "DRAINING"
    BACKEND_ERROR = "BACKEND_ERROR"
    INTERNAL = "INTERNAL"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    CALLER_LIMIT = "CALLER_LIMIT"


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


@contextmanager
def at(path: str) -> Iterator[None]:
    """Puts a path in front of the field of every `MienError` that leaves the block.

    Code that looks at one part of a request names fields within that part. Whoever hands the part on
    knows where it stands: nested blocks build the whole path from the inside out.

    Args:
        path: where the part stands: `image`, `selection`, `a`.
    """
    try:
        yield
    except MienError as error:
        error.field = f"{path}.{error.field}" if error.field else path
        raise


class InvalidRequest(MienError):
    """The request itself is wrong, whatever the server's state. INVALID_ARGUMENT on the wire."""


class Unmet(MienError):
    """The request is well formed but what it asks for does not hold. FAILED_PRECONDITION."""


class NotInGallery(MienError):
    """No such collection, person or enrolled face. NOT_FOUND on the wire."""


class AlreadyInGallery(MienError):
    """There is a collection of that name. ALREADY_EXISTS on the wire."""


class GalleryFull(MienError):
    """The galleries or their disk hold no more; what they hold is still found. RESOURCE_EXHAUSTED."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.GALLERY_FULL, message)


class GalleryUnavailable(MienError):
    """The galleries' own server cannot be asked now. UNAVAILABLE on the wire.

    Attributes:
        retry_after: seconds after which another try has a chance.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(Reason.GALLERY_UNAVAILABLE, message)
        self.retry_after = retry_after


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


class ModelAsleep(ModelNotReady):
    """The model was unloaded because nobody called it. Who waits for a load of it can have it."""


class Unauthenticated(MienError):
    """The caller has not proved who it is. UNAUTHENTICATED on the wire."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.UNAUTHENTICATED, message)


class PermissionDenied(MienError):
    """The caller is known, and may not do this. PERMISSION_DENIED on the wire."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.PERMISSION_DENIED, message)


class CallerLimit(MienError):
    """The caller asks for more than one caller may. RESOURCE_EXHAUSTED on the wire.

    Attributes:
        retry_after: seconds after which another try has a chance.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(Reason.CALLER_LIMIT, message)
        self.retry_after = retry_after


class OperatorError(Exception):
    """Something that an operator can mend: a setting, a file, a device. The message says what and how.

    Commands print it and exit with 1; none of its kinds is a defect of mien.
    """
