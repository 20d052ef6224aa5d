"""Aligned faces out of plain photos, as the pipeline cuts them for embedding models."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from mien_server.evaluation.loaded import EvaluationError, LoadedModels, load_models, run_all
from mien_server.models.roles import DETECTOR, NO_LANDMARKS
from mien_server.pipeline.align import alignable, crop_faces
from mien_server.pipeline.decode import decode
from mien_server.pipeline.types import (
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ImageU8,
    Limits,
    ModelRef,
)
from mien_server.settings import Settings


def aligned_faces(settings: Settings, photos: Sequence[Path]) -> list[ImageU8]:
    """The largest face of each photo that has one, found by the server's default detector.

    Photos without a usable face are told on standard error and left out.

    Returns:
        crops [112, 112, 3] RGB uint8.

    Raises:
        EvaluationError: the detector does not load or places no landmarks, or no photo has a face.
    """
    limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
    wanted = ModelRef(settings.default_detector)
    with load_models(settings, {DETECTOR: wanted}) as running:
        if not running.models[DETECTOR].config.options.landmarks:
            raise EvaluationError(NO_LANDMARKS.format(wanted.name))

        async def cut(path: Path) -> ImageU8 | str:
            return await _largest(running, wanted, path, limits)

        found = run_all(photos, cut, label="finding faces")
    crops = []
    for path, result in zip(photos, found, strict=True):
        if isinstance(result, Exception | str):
            print(f"left out: {path}: {result}", file=sys.stderr)
        else:
            crops.append(result)
    if not crops:
        raise EvaluationError(f"{wanted.name} finds a face in none of {len(photos)} photos")
    return crops


async def _largest(
    running: LoadedModels, detector: ModelRef, path: Path, limits: Limits
) -> ImageU8 | str:
    """The crop of a photo's largest face, or why there is none."""
    image = EncodedImage(await asyncio.to_thread(path.read_bytes))
    found = await running.pipeline.detect(
        image, detector=detector, selection=FaceSelection(FacePolicy.LARGEST), call=Call()
    )
    if not found.faces:
        return "no face was found"
    landmarks = found.faces[0].landmarks
    assert landmarks is not None  # noqa: S101 - this detector gives some with every face
    if not alignable(landmarks[None]).all():
        return "its largest face cannot be aligned"

    def crop() -> ImageU8:
        return crop_faces(decode(image, limits).pixels, landmarks[None])[0]

    return await asyncio.to_thread(crop)
