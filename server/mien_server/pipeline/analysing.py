"""From a picture to what analysers say of its faces: found, chosen, cut as each wants, run at once."""

import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import at
from mien_server.models.analyser import AnalyserOptions, AnalyserRow
from mien_server.models.crops import ALIGNED, Crop
from mien_server.models.interface import CROP_SIDE
from mien_server.pipeline.align import TEMPLATE, Cut, cut, cut_faces, matrix_of
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.embedding import embed_crops, face_of
from mien_server.pipeline.finding import find_chosen, load_crop
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.quality import judge, of_crop
from mien_server.pipeline.room import PictureRoom
from mien_server.pipeline.running import identity_of, run_parts, together
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
    Limits,
    ModelIdentity,
    PhotoFaces,
    RawPixels,
    StageTime,
)
from mien_server.repository.versions import Lease

BOXED = Crop(around="box")
"""What quality is told by of a face without landmarks: upright, as large as an aligned one."""


async def analyse_image(
    image: ImageSource,
    detector: Lease | None,
    analysers: Sequence[Sequence[Lease]],
    selection: FaceSelection,
    *,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    embedder: Lease | None = None,
    required: bool = True,
) -> PhotoFaces:
    """What analysers say of an aligned crop, or of the chosen faces of a photo; the quality and crop of each.

    Args:
        detector: a photo needs one.
        embedder: of faces that are to be embedded, too.
        analysers: of each answer the analyser, and others whose answers to a face are averaged with its own;
            of an aligned crop, none that sees the face's box; of a detector that places no landmarks, only
            such, and no embedder.
        selection: checked by `check_selection`.
        required: whether a photo without a face that is wanted is an error, unless the policy is ALL.

    Raises:
        InvalidRequest: the picture cannot be used. Its field begins with `image`, as that of Unmet.
        Unmet: the photo has no face that is wanted, and one is required; or too many.
        SchedulingError: why there is no result.
    """
    with at("image"), at(image.part):
        if isinstance(image, AlignedFace):
            return await _analyse_crop(image, analysers, embedder, limits, pool, call)
        if detector is None:
            raise ValueError("a photo needs a detector")
        return await _analyse_photo(
            image, detector, analysers, embedder, selection, limits, pool, call, required
        )


async def _analyse_crop(
    image: AlignedFace,
    analysers: Sequence[Sequence[Lease]],
    embedder: Lease | None,
    limits: Limits,
    pool: PicturePool,
    call: Call,
) -> PhotoFaces:
    pixels = await load_crop(image, limits=limits, pool=pool, call=call)
    # It is a photo of one face that lies where the template has it.
    matrices = {crop: matrix_of(crop, TEMPLATE) for crop in _wanted(_models(analysers, embedder))}
    begun = time.monotonic()
    cuts, quality = await pool.finish(
        lambda: (
            {
                crop: [Cut(pixels if crop.is_template else cut(pixels, matrix, crop.side), matrix)]
                for crop, matrix in matrices.items()
            },
            of_crop(pixels),
        )
    )
    call.add(begun, StageTime("align", time.monotonic() - begun))
    analyses, embeddings = await _run(analysers, embedder, cuts, call, passed=0)
    face = Face(None, 0.0, None, embeddings[0], quality, [each[0] for each in analyses], pixels)
    return PhotoFaces([face], CROP_SIDE, CROP_SIDE, embedder=_identity(embedder))


async def _analyse_photo(
    image: EncodedImage | RawPixels,
    detector: Lease,
    analysers: Sequence[Sequence[Lease]],
    embedder: Lease | None,
    selection: FaceSelection,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    required: bool,
) -> PhotoFaces:
    models = _models(analysers, embedder)
    photo, faces, chosen = await find_chosen(
        image,
        detector,
        selection,
        limits=limits,
        pool=pool,
        call=call,
        reserve=max((each.model.slot.expected_compute() for each in models), default=0.0),
        required=required,
    )
    width, height, identity = photo.width, photo.height, identity_of(detector.model)
    if not chosen:
        return PhotoFaces([], width, height, identity, _identity(embedder))
    seen = ALIGNED if faces.placed else BOXED
    matrices = {
        crop: [matrix_of(crop, faces.landmarks[i], faces.boxes[i], (width, height)) for i in chosen]
        for crop in _wanted(models, seen)
    }
    begun = time.monotonic()
    cuts = await pool.finish(
        partial(_cut_all, image, photo, faces.landmarks[chosen], matrices, limits, pool.room)
    )
    crops = [each.pixels for each in cuts[seen]]
    qualities = await pool.finish(partial(judge, crops, faces, chosen, width, height))
    call.add(begun, StageTime("align", time.monotonic() - begun))
    # The crops are all that the call needs of the photo while it waits.
    del photo
    analyses, embeddings = await _run(analysers, embedder, cuts, call, passed=1)
    return PhotoFaces(
        [
            face_of(
                faces,
                i,
                embedding,
                quality,
                [each[number] for each in analyses],
                crop if faces.placed else None,
            )
            for number, (i, embedding, quality, crop) in enumerate(
                zip(chosen, embeddings, qualities, crops, strict=True)
            )
        ],
        width,
        height,
        identity,
        _identity(embedder),
    )


def _identity(embedder: Lease | None) -> ModelIdentity | None:
    return identity_of(embedder.model) if embedder else None


def _models(analysers: Sequence[Sequence[Lease]], embedder: Lease | None) -> list[Lease]:
    return [*chain.from_iterable(analysers), *([embedder] if embedder else [])]


def _wanted(models: Sequence[Lease], seen: Crop = ALIGNED) -> set[Crop]:
    """The different crops that they want of a face, and that of which quality is told."""
    return {seen, *(each.model.config.options.crop for each in models)}


def _cut_all(
    image: EncodedImage | RawPixels,
    photo: Photo,
    landmarks: ArrayF32,
    matrices: dict[Crop, list[NDArray[np.float64]]],
    limits: Limits,
    room: PictureRoom,
) -> dict[Crop, list[Cut]]:
    """The crops of a photo's faces [n, 5, 2]; without landmarks, [n, 0, 2], none is aligned. Blocking."""
    others = {crop: part for crop, part in matrices.items() if not crop.is_template}
    if ALIGNED not in matrices:
        nobody = np.empty((0, 5, 2), np.float32)
        return cut_faces(image, photo, nobody, others, limits, room)[1]
    aligned, cuts = cut_faces(image, photo, landmarks, others, limits, room)
    pairs = zip(aligned, matrices[ALIGNED], strict=True)
    return {**cuts, ALIGNED: [Cut(pixels, matrix) for pixels, matrix in pairs]}


async def _run(
    analysers: Sequence[Sequence[Lease]],
    embedder: Lease | None,
    cuts: dict[Crop, list[Cut]],
    call: Call,
    *,
    passed: int,
) -> tuple[list[Sequence[Analysis]], Sequence[Embedding | None]]:
    """What analysers say of each face, by answer, and the faces' embeddings; all of them at once."""

    async def run(analyser: Lease) -> list[Analysis]:
        model = analyser.model
        options: AnalyserOptions = model.config.options
        seen, identity = cuts[options.crop], identity_of(model)
        rows = [AnalyserRow(each.pixels) for each in seen]
        results = await run_parts(analyser, rows, call, passed=passed)
        return [
            Analysis(
                identity,
                options.kind,
                _in_picture(result.values, each.matrix)
                if options.kind == "points"
                else result.values,
                options.labels,
                options.unit,
            )
            for result, each in zip(results, seen, strict=True)
        ]

    parts: list[Coroutine[Any, Any, Sequence[Any]]] = [
        run(each) for each in _models(analysers, None)
    ]
    if embedder is not None:
        crops = [each.pixels for each in cuts[embedder.model.config.options.crop]]
        parts.append(embed_crops(crops, embedder, call, passed=passed))
    found: list[Any] = await together(*parts)
    none = [None] * len(next(iter(cuts.values())))
    said = iter(found)
    analyses = [_averaged([next(said) for _ in group]) for group in analysers]
    return analyses, found[-1] if embedder is not None else none


def _averaged(said: Sequence[Sequence[Analysis]]) -> Sequence[Analysis]:
    """Of each face the mean of what several analysers say of it, as the first one's answer."""
    if len(said) == 1:
        return said[0]
    return [
        replace(each[0], values=np.mean([one.values for one in each], axis=0))
        for each in zip(*said, strict=True)
    ]


def _in_picture(values: ArrayF32, matrix: NDArray[np.float64]) -> ArrayF32:
    """Points of a crop, x and y in turn, as points [n, 2] of the picture that it was cut out of."""
    points = values.reshape(-1, 2).astype(np.float64) - matrix[:, 2]
    return np.asarray(points @ np.linalg.inv(matrix[:, :2]).T, np.float32)
