"""From a picture to the embeddings of its faces: found, chosen, aligned and given to the embedder."""

import logging
import math
import time
import uuid
from collections.abc import Sequence
from functools import partial

import numpy as np

from mien_server.errors import at
from mien_server.models.crops import Crop
from mien_server.models.detections import Detections
from mien_server.models.interface import CROP_SIDE
from mien_server.models.roles import EmbedderRow
from mien_server.pipeline.align import cut_again, cut_faces, matrix_of
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.finding import find_chosen, load_crop
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.quality import judge, of_crop
from mien_server.pipeline.room import PictureRoom
from mien_server.pipeline.running import identity_of, run_parts
from mien_server.pipeline.types import (
    AlignedFace,
    Analysis,
    ArrayF32,
    Call,
    Embedding,
    EncodedImage,
    Face,
    FaceSelection,
    ImageSource,
    ImageU8,
    Limits,
    ModelIdentity,
    PhotoFaces,
    Quality,
    RawPixels,
    StageTime,
)
from mien_server.repository.versions import Lease
from mien_server.scheduling.errors import RowFailed

logger = logging.getLogger(__name__)


async def embed_image(
    image: ImageSource,
    detector: Lease | None,
    embedder: Lease,
    selection: FaceSelection,
    *,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    inspect: bool = False,
) -> PhotoFaces:
    """Embeds an aligned crop, or the chosen faces of a photo.

    Args:
        detector: a photo needs one.
        selection: checked by `check_selection`.
        inspect: whether to tell the faces' quality and their crops, too.

    Raises:
        InvalidRequest: the picture cannot be used. Its field begins with `image`, as that of Unmet.
        Unmet: the photo has no face that is wanted, or too many.
        SchedulingError: why there is no result.
    """
    with at("image"), at(image.part):
        if isinstance(image, AlignedFace):
            return await _embed_crop(image, embedder, limits, pool, call, inspect)
        if detector is None:
            raise ValueError("a photo needs a detector")
        return await _embed_photo(image, detector, embedder, selection, limits, pool, call, inspect)


async def _embed_crop(
    image: AlignedFace,
    embedder: Lease,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    inspect: bool,
) -> PhotoFaces:
    pixels = await load_crop(image, limits=limits, pool=pool, call=call)
    wanted: Crop = embedder.model.config.options.crop
    seen = pixels if wanted.is_template else await pool.finish(partial(cut_again, pixels, wanted))
    (embedding,) = await embed_crops([seen], embedder, call, passed=0)
    quality = await pool.finish(partial(of_crop, pixels)) if inspect else None
    face = Face(None, 0.0, None, embedding, quality, crop=pixels if inspect else None)
    return PhotoFaces([face], CROP_SIDE, CROP_SIDE, embedder=identity_of(embedder.model))


async def _embed_photo(
    image: EncodedImage | RawPixels,
    detector: Lease,
    embedder: Lease,
    selection: FaceSelection,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    inspect: bool,
) -> PhotoFaces:
    photo, faces, chosen = await find_chosen(
        image,
        detector,
        selection,
        limits=limits,
        pool=pool,
        call=call,
        reserve=embedder.model.slot.expected_compute(),
    )
    width, height = photo.width, photo.height
    crops: list[ImageU8] = []
    seen: list[ImageU8] = []
    if chosen:
        begun = time.monotonic()
        wanted: Crop = embedder.model.config.options.crop
        crops, seen = await pool.finish(
            partial(_cut, image, photo, faces.landmarks[chosen], wanted, limits, pool.room)
        )
        call.add(begun, StageTime("align", time.monotonic() - begun))
    qualities: Sequence[Quality | None] = [None] * len(chosen)
    if inspect:
        qualities = await pool.finish(partial(judge, crops, faces, chosen, width, height))
    # The crops are all that the call needs of the photo while it waits.
    del photo
    embeddings = await embed_crops(seen, embedder, call, passed=1)
    return PhotoFaces(
        [
            face_of(faces, i, embedding, quality, crop=crop if inspect else None)
            for i, embedding, quality, crop in zip(
                chosen, embeddings, qualities, crops, strict=True
            )
        ],
        width,
        height,
        identity_of(detector.model),
        identity_of(embedder.model),
    )


def _cut(
    image: EncodedImage | RawPixels,
    photo: Photo,
    landmarks: ArrayF32,
    wanted: Crop,
    limits: Limits,
    room: PictureRoom,
) -> tuple[list[ImageU8], list[ImageU8]]:
    """The aligned faces [112, 112, 3], and what an embedder sees of them: mostly the same. Blocking."""
    others = {} if wanted.is_template else {wanted: [matrix_of(wanted, each) for each in landmarks]}
    aligned, cuts = cut_faces(image, photo, landmarks, others, limits, room)
    return aligned, [each.pixels for each in cuts[wanted]] if others else aligned


async def embed_crops(
    crops: Sequence[ImageU8], embedder: Lease, call: Call, *, passed: int
) -> list[Embedding]:
    """Embeds crops, as the embedder sees them, in requests of at most its batch, all at once."""
    results = await run_parts(embedder, [EmbedderRow(crop) for crop in crops], call, passed=passed)
    identity = identity_of(embedder.model)
    return [to_embedding(raw, identity) for raw in results]


def face_of(
    found: Detections,
    index: int,
    embedding: Embedding | None = None,
    quality: Quality | None = None,
    analyses: Sequence[Analysis] = (),
    crop: ImageU8 | None = None,
) -> Face:
    """One of the faces found, with its embedding, quality, analyses and crop if it has them."""
    return Face(
        found.boxes[index].astype(np.float32),
        float(found.scores[index]),
        found.landmarks[index].astype(np.float32) if found.placed else None,
        embedding,
        quality,
        analyses,
        crop,
    )


def to_embedding(raw: ArrayF32, model: ModelIdentity) -> Embedding:
    """A network's raw output [d] as a unit vector, with its norm before.

    Raises:
        RowFailed: the output is zero or not finite: the model failed on this face. The log line with the
            same incident names the model.
    """
    vector = raw.astype(np.float64)
    norm = float(np.linalg.norm(vector))
    if not math.isfinite(norm) or norm <= 0.0:
        incident = uuid.uuid4().hex[:8]
        facts = {"incident": incident, "model": model.name, "version": model.version}
        logger.error("the model gave a vector of norm %s", norm, extra=facts)
        raise RowFailed(
            f"{model.name} version {model.version} gave no usable vector for this face.",
            incident=incident,
        )
    return Embedding((vector / norm).astype(np.float32), norm, model)
