"""What is sent: photos and crops, as requests ready for the wire; and whether answers agree."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mien.v1 import face_pb2 as pb

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "samples").glob("*.jpg"))
SERVICE = "/mien.v1.FaceService"
CROP = 112
_SAME_BOX = 0.8
_SAME_SIMILARITY = 0.02

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Workload:
    """Requests of one kind.

    Attributes:
        key: its name on the command line.
        title: its heading.
        unit: what is counted.
        canvas: side of the detector's canvas, in pixels, the same for every server.
        method: of FaceService.
        make: the requests.
        jpegs: the photos, for servers that take a JPEG as it is; None if there are no photos to embed.
    """

    key: str
    title: str
    unit: str
    canvas: int
    method: str
    make: Callable[[], list[bytes]]
    jpegs: Callable[[], list[bytes]] | None = None

    @functools.cached_property
    def requests(self) -> list[bytes]:
        """Serialised, to be sent in turn."""
        return self.make()

    @property
    def path(self) -> str:
        """The method as gRPC names it."""
        return f"{SERVICE}/{self.method}"


@functools.cache
def portraits() -> list[bytes]:
    """The six sample portraits, as they are."""
    return [path.read_bytes() for path in PHOTOS]


def _pixels(jpeg: bytes) -> Picture:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def _jpeg(picture: Picture) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def enlarged(jpeg: bytes, megapixels: float) -> bytes:
    """A photo at so many megapixels, with a sensor's noise."""
    picture = _pixels(jpeg)
    scale = (megapixels * 1e6 / (picture.shape[0] * picture.shape[1])) ** 0.5
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how)
    noise = np.random.default_rng(0).normal(0, 3, size=large.shape)
    return _jpeg(np.clip(large + noise, 0, 255).astype(np.uint8))


@functools.cache
def large_photos() -> list[bytes]:
    """Three photos of 12 megapixels: portraits enlarged, in files of megabytes."""
    return [enlarged(jpeg, 12) for jpeg in portraits()[:3]]


def group_photo(faces: int, side: int) -> bytes:
    """A square photo with so many portraits side by side, on grey."""
    columns = int(np.ceil(np.sqrt(faces)))
    cell = side // columns
    picture = np.full((side, side, 3), 128, np.uint8)
    for n in range(faces):
        portrait = _pixels(portraits()[n % len(PHOTOS)])
        ratio = cell / max(portrait.shape[:2])
        small = cv2.resize(portrait, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
        small = small[:cell, :cell]
        top, left = n // columns * cell, n % columns * cell
        picture[top : top + small.shape[0], left : left + small.shape[1]] = small
    return _jpeg(picture)


def crops() -> list[Picture]:
    """A crop of 112x112 RGB of each portrait; what it shows does not change the speed."""
    return [
        np.asarray(cv2.resize(_pixels(jpeg), (CROP, CROP))[..., ::-1], np.uint8)
        for jpeg in portraits()
    ]


def _image(jpeg: bytes) -> pb.Image:
    return pb.Image(encoded=jpeg)


def _embeds(jpegs: Sequence[bytes]) -> list[bytes]:
    return [pb.EmbedRequest(image=_image(jpeg)).SerializeToString() for jpeg in jpegs]


def _detects(faces: int, side: int) -> list[bytes]:
    return [pb.DetectRequest(image=_image(group_photo(faces, side))).SerializeToString()]


def _verifies() -> list[bytes]:
    pairs = zip(portraits(), [*portraits()[1:], portraits()[0]], strict=True)
    return [
        pb.VerifyRequest(
            a=pb.Subject(image=_image(a)), b=pb.Subject(image=_image(b))
        ).SerializeToString()
        for a, b in pairs
    ]


def _aligned(embedder: str) -> list[bytes]:
    requests = []
    for crop in crops():
        pixels = pb.Pixels(height=CROP, width=CROP, data=crop.tobytes())
        image = pb.Image(aligned_face=pb.AlignedFace(pixels=pixels))
        request = pb.EmbedRequest(image=image, embedder=pb.ModelRef(name=embedder))
        requests.append(request.SerializeToString())
    return requests


EMBED = Workload(
    "embed",
    "Embed of JPEG portraits",
    "photos",
    320,
    "Embed",
    lambda: _embeds(portraits()),
    portraits,
)
WORKLOADS = (
    EMBED,
    Workload(
        *("embed12", "Embed of 12-megapixel photos", "photos", 320, "Embed"),
        lambda: _embeds(large_photos()),
        large_photos,
    ),
    Workload("verify", "Verify of two portraits", "pairs", 320, "Verify", _verifies),
    Workload("sface", "Embed of crops, SFace", "crops", 320, "Embed", lambda: _aligned("sface")),
    Workload("ir50", "Embed of crops, IR-50", "crops", 320, "Embed", lambda: _aligned("arcface")),
    Workload("detect1", "Detect, 1 face", "photos", 320, "Detect", lambda: _detects(1, 900)),
    Workload("detect10", "Detect, 10 faces", "photos", 640, "Detect", lambda: _detects(10, 1280)),
    Workload("detect50", "Detect, 50 faces", "photos", 1024, "Detect", lambda: _detects(50, 2048)),
)


class AnswersDiffer(Exception):
    """A server does not give mien's answer; the message says by how much."""


def agreement(workload: Workload, mien: bytes, other: bytes, least: float) -> float:
    """How well an answer agrees with mien's to the same request, 1 at best.

    Of embeddings and of Verify's faces it is the cosine, of Detect the share of mien's boxes that the other
    has found, too.

    Args:
        workload: what was asked.
        mien: its serialised answer.
        other: likewise, or JSON with an "embedding".
        least: what is enough.

    Raises:
        AnswersDiffer: it is not enough.
    """
    if workload.method == "Detect":
        found = _shared_boxes(
            pb.DetectResponse.FromString(mien), pb.DetectResponse.FromString(other)
        )
    elif workload.method == "Verify":
        found = _same_faces(pb.VerifyResponse.FromString(mien), pb.VerifyResponse.FromString(other))
    else:
        ours = pb.EmbedResponse.FromString(mien).faces[0].embedding.values
        found = cosine(ours, _embedding(other))
    if not found >= least:
        raise AnswersDiffer(f"agrees with mien's answer by {found:.4f} only")
    return found


def _embedding(answer: bytes) -> Sequence[float]:
    if answer.startswith(b"{"):
        values: Sequence[float] = json.loads(answer)["embedding"]
        return values
    return pb.EmbedResponse.FromString(answer).faces[0].embedding.values


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Of two vectors [d]."""
    x, y = np.asarray(a), np.asarray(b)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _same_faces(mien: pb.VerifyResponse, other: pb.VerifyResponse) -> float:
    if abs(mien.similarity - other.similarity) > _SAME_SIMILARITY:
        return 0.0
    sides = ((mien.face_a, other.face_a), (mien.face_b, other.face_b))
    return min(cosine(a.embedding.values, b.embedding.values) for a, b in sides)


def _shared_boxes(mien: pb.DetectResponse, other: pb.DetectResponse) -> float:
    a, b = (
        np.array([[f.box.x1, f.box.y1, f.box.x2, f.box.y2] for f in r.faces]) for r in (mien, other)
    )
    if not len(a) or len(a) != len(b):
        return 0.0
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(corner, 0, None).prod(axis=2)
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(axis=1)
    return float((shared / (areas - shared) > _SAME_BOX).any(axis=1).mean())
