"""mien: finds faces, turns them into embeddings, and says whether two are the same person.

This is the client of a mien server: `Client` and, for asyncio, `AsyncClient`.
"""

import mien.quiet_grpc  # noqa: F401 - first: before anything imports gRPC
from mien.access import TokenLike, tls_credentials
from mien.async_client import AsyncClient
from mien.async_gallery import AsyncGallery
from mien.client import Client
from mien.errors import (
    Cancelled,
    DeadlineExceeded,
    EmbeddingMismatch,
    FaceNotFound,
    FaceTooSmall,
    FailedPrecondition,
    GalleryExists,
    GalleryFull,
    InvalidRequest,
    LowQuality,
    MienError,
    ModelNotFound,
    ModelNotReady,
    MultipleFaces,
    NotInGallery,
    Overloaded,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
    WrongServer,
)
from mien.gallery import Gallery
from mien.gallery_results import (
    Deleted,
    EnrolledFace,
    EnrolResult,
    FaceGroup,
    FaceQuality,
    GalleryInfo,
    GalleryPerson,
    GroupResult,
    IdentifiedFace,
    IdentifyResult,
    NewFace,
    PersonMatch,
    QualityIssue,
    ReembedResult,
    SampleMatch,
    SearchedGallery,
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
    "AsyncGallery",
    "Box",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Deleted",
    "DetectResult",
    "EmbedResult",
    "Embedding",
    "EmbeddingMismatch",
    "EnrolResult",
    "EnrolledFace",
    "Face",
    "FaceGroup",
    "FaceNotFound",
    "FacePolicy",
    "FaceQuality",
    "FaceTooSmall",
    "FailedPrecondition",
    "Gallery",
    "GalleryExists",
    "GalleryFull",
    "GalleryInfo",
    "GalleryPerson",
    "GroupResult",
    "IdentifiedFace",
    "IdentifyResult",
    "ImageLike",
    "InvalidRequest",
    "Landmarks",
    "Limits",
    "LowQuality",
    "MienError",
    "ModelIdentity",
    "ModelLike",
    "ModelNotFound",
    "ModelNotReady",
    "ModelStatus",
    "MultipleFaces",
    "NewFace",
    "NotInGallery",
    "Overloaded",
    "PermissionDenied",
    "PersonMatch",
    "Point",
    "QualityIssue",
    "ReembedResult",
    "SampleMatch",
    "SearchedGallery",
    "ServerError",
    "StageTiming",
    "TokenLike",
    "Unauthenticated",
    "Unavailable",
    "VerifyResult",
    "WrongServer",
    "tls_credentials",
]
