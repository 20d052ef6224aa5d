"""The pipeline's own vocabulary: plain data for what comes in and what goes out, without gRPC or torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mien_server.models.analyser import Kind

ImageU8 = NDArray[np.uint8]
ArrayF32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An encoded file."""

    part: ClassVar = "encoded"
    """What requests call a picture of this kind: the step of an error's path that leads to it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class RawPixels:
    """Raw RGB pixels as the caller declared them, not yet checked against each other."""

    part: ClassVar = "pixels"
    """As `EncodedImage.part`."""

    height: int
    width: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AlignedFace:
    """A crop that must turn out to be 112x112 pixels."""

    part: ClassVar = "aligned_face"
    """As `EncodedImage.part`."""

    crop: EncodedImage | RawPixels


ImageSource = EncodedImage | RawPixels | AlignedFace


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model the caller wants: "" is the server's default, and 0 the highest version that is ready."""

    name: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answered; see the contract for the fingerprint."""

    name: str
    version: int
    fingerprint: str


class FacePolicy(StrEnum):
    """Which of the faces found are wanted."""

    LARGEST = "LARGEST"
    CENTER_LARGEST = "CENTER_LARGEST"
    ALL = "ALL"
    REQUIRE_ONE = "REQUIRE_ONE"


@dataclass(frozen=True, slots=True)
class FaceSelection:
    """Which faces are wanted, how sure and how large. None means the detector's or the server's default."""

    policy: FacePolicy
    min_score: float | None = None
    min_face_size: float | None = None
    max_faces: int | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """A unit vector [d] float32, its raw L2 norm before scaling, and the model that made it."""

    values: ArrayF32
    norm: float
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class Quality:
    """The figures of a face; the contract's FaceQuality says what they mean. None: unknown.

    Attributes:
        sharpness: of fine detail, as a part of the contrast, 0 or more.
        brightness: mean, in [0, 1].
        contrast: standard deviation of the brightness, in [0, 1].
        size: shorter side of the box, in pixels of the photo.
        yaw, pitch, roll: in degrees.
        cut_off: the share of the face outside of the photo, in [0, 1].
        next_face: the side of the next largest face, as a part of this one's; 0: alone.
        score: the detector's, in [0, 1].
    """

    sharpness: float
    brightness: float
    contrast: float
    size: float | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    cut_off: float | None = None
    next_face: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an analyser says of a face.

    Attributes:
        kind: which kind of answer it is.
        values: float32. Probabilities [n], one for each label; of a score or a number [1]; of points [n, 2],
            in pixels of the upright photo, or of the crop that the caller sent.
        labels: of probabilities.
        unit: of a number.
    """

    model: ModelIdentity
    kind: Kind
    values: ArrayF32
    labels: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Face:
    """A face in pixels of the upright photo; box [4] and landmarks [5, 2] are None for a crop.

    Landmarks are also None of a detector that places none, and so is the crop then.
    `quality`, `analyses` and the crop [112, 112, 3] that embedders see are there if they were asked for.
    """

    box: ArrayF32 | None
    score: float
    landmarks: ArrayF32 | None
    embedding: Embedding | None = None
    quality: Quality | None = None
    analyses: Sequence[Analysis] = ()
    crop: ImageU8 | None = None


@dataclass(frozen=True, slots=True)
class PhotoFaces:
    """The answer of `detect`, `embed` and `analyse`: the faces of one photo and the models that ran."""

    faces: list[Face]
    width: int
    height: int
    detector: ModelIdentity | None = None
    embedder: ModelIdentity | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answer of `verify`; sizes are width and height of an upright photo, None without one."""

    similarity: float
    threshold: float
    threshold_from_request: bool
    matched: bool
    face_a: Face
    face_b: Face
    detector: ModelIdentity | None
    embedder: ModelIdentity
    size_a: tuple[int, int] | None = None
    size_b: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask of the pipeline.

    Attributes:
        max_image_bytes: bytes of an encoded picture, at least 1.
        max_image_pixels: pixels (width times height) of any picture, at least 1.
        max_faces: faces that one answer may hold, in [1, 1000].
    """

    max_image_bytes: int = 20 * 1024 * 1024
    max_image_pixels: int = 50_000_000
    max_faces: int = 100


@dataclass(slots=True)
class StageTime:
    """How long one stage of a call took, in seconds, and the batch it shared where there was one.

    Attributes:
        batch_rows: rows of that batch.
        began: `time.monotonic()` when the stage began.
        batch: the number of that batch.
        model: what computed it.
    """

    name: str
    seconds: float
    batch_rows: int | None = None
    began: float | None = None
    batch: int | None = None
    model: ModelIdentity | None = None


@dataclass(slots=True)
class Call:
    """What travels with a request through every queue.

    Attributes:
        deadline: `time.monotonic()` seconds after which nobody waits for the answer, or None.
        priority: 1 is the most urgent, as in Triton; 0 is the default level of each model.
        arrived: `time.monotonic()` when the call came in. Its age decides between slots.
        stages: each part of the call adds its own as it ends. They are sent back as trailing metadata if
            the caller asks for them.
        queue_timeout: seconds it may wait in each model's queue (Triton's `timeout`), where the model's
            queue policy lets a request say so. None leaves it to the policy.
    """

    deadline: float | None = None
    priority: int = 0
    arrived: float = field(default_factory=time.monotonic)
    stages: list[StageTime] = field(default_factory=list)
    queue_timeout: float | None = None

    def add(self, began: float, *stages: StageTime) -> None:
        """Adds stages that followed each other; the first began at this moment of `time.monotonic()`."""
        for stage in stages:
            stage.began = began
            began += stage.seconds
        self.stages += stages
