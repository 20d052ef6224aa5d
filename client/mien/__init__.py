"""mien: finds faces, turns them into embeddings, and says whether two are the same person.

This is the client of a mien server: `Client` and, for asyncio, `AsyncClient`.
"""

import mien.quiet_grpc  # noqa: F401 - first: before anything imports gRPC
from mien.access import TokenLike, tls_credentials
from mien.async_client import AsyncClient
from mien.client import Client
from mien.errors import (
    Cancelled,
    DeadlineExceeded,
    EmbeddingMismatch,
    FaceNotFound,
    FaceTooSmall,
    FailedPrecondition,
    InvalidRequest,
    MienError,
    ModelNotFound,
    ModelNotReady,
    MultipleFaces,
    Overloaded,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
    WrongServer,
)
from mien.images import ImageLike
from mien.limits import Limits
from mien.messages import FacePolicy, ModelLike
from mien.results import (
    Box,
    DetectResult,
    Embedding,
    EmbedResult,
    Face,
    Landmarks,
    ModelIdentity,
    Point,
    VerifyResult,
)
from mien.status import ModelStatus
from mien.timing import StageTiming

__all__ = [
    "AsyncClient",
    "Box",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "DetectResult",
    "EmbedResult",
    "Embedding",
    "EmbeddingMismatch",
    "Face",
    "FaceNotFound",
    "FacePolicy",
    "FaceTooSmall",
    "FailedPrecondition",
    "ImageLike",
    "InvalidRequest",
    "Landmarks",
    "Limits",
    "MienError",
    "ModelIdentity",
    "ModelLike",
    "ModelNotFound",
    "ModelNotReady",
    "ModelStatus",
    "MultipleFaces",
    "Overloaded",
    "PermissionDenied",
    "Point",
    "ServerError",
    "StageTiming",
    "TokenLike",
    "Unauthenticated",
    "Unavailable",
    "VerifyResult",
    "WrongServer",
    "tls_credentials",
]
