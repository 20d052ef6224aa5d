"""What the quality number of a face is worth: portraits made worse, and how far their embeddings move.

    python -m bench.quality [--model-repository model_repository]

The six sample portraits are blurred, shrunk, darkened and turned, further and further. Each is judged and
embedded by the pipeline with the default models, which have to be installed (`make models`). Prints, for
ranges of the number, how alike the embeddings are to those of the portraits as they are; and the means of
both at each step of each way.
"""

import argparse
import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mien_server.engine import build_engine
from mien_server.errors import Unmet
from mien_server.load.report import table
from mien_server.models.interface import ArrayF32, ImageU8
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.quality import overall
from mien_server.pipeline.types import (
    Call,
    Embedding,
    Face,
    FacePolicy,
    FaceSelection,
    ModelRef,
    Quality,
    RawPixels,
)
from mien_server.settings import Settings

ROOT = Path(__file__).parents[1]
PORTRAITS = sorted((ROOT / "samples").glob("*.jpg"))
RANGES = ((0.0, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0), (1.0, 1.01))
"""Of the number, the upper end left out."""


class Made(NamedTuple):
    """A portrait as it is or made worse: what it is called, by how much, and how it came out.

    Attributes:
        cosine: of its embedding to that of the portrait as it is.
    """

    portrait: str
    way: str
    step: float
    quality: Quality
    cosine: float


def blurred(pixels: ImageU8, landmarks: ArrayF32, sigma: float) -> ImageU8:
    """Out of focus; sigma in distances between the eyes."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma * eyes(landmarks)), np.uint8)


def shrunk(pixels: ImageU8, landmarks: ArrayF32, apart: float) -> ImageU8:
    """Scaled until the eyes are so many pixels apart."""
    scale = apart / eyes(landmarks)
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def darkened(pixels: ImageU8, landmarks: ArrayF32, factor: float) -> ImageU8:  # noqa: ARG001 - alike
    """So much of its light, with the noise of a sensor that has little."""
    noise = np.random.default_rng(7).normal(0, 2.0, pixels.shape)
    return np.clip(pixels * factor + noise, 0, 255).astype(np.uint8)


def turned(pixels: ImageU8, landmarks: ArrayF32, degrees: float) -> ImageU8:
    """Turned further to the side that it looks to, as if the head were an ellipsoid with a nose."""
    apart = eyes(landmarks)
    nose = landmarks[2]
    middle = (landmarks[:2].mean(axis=0) + landmarks[3:].mean(axis=0)) / 2
    side = 1 if nose[0] >= middle[0] else -1
    turn = np.radians(degrees)
    height, width = pixels.shape[:2]
    x = (np.arange(width) - middle[0]) / apart * side
    source = np.empty((height, width), np.float32)
    for row in range(height):
        y = (row - middle[1]) / apart
        head = 1 - (x / 1.3) ** 2 - (y / 1.9) ** 2
        bump = np.exp(-(x**2 + (y - (nose[1] - middle[1]) / apart) ** 2) / (2 * 0.18**2))
        depth = 1.1 * np.sqrt(np.clip(head, 0, None)) + 0.3 * bump
        # Where each pixel comes to lie; what goes behind another one is hidden.
        place = np.maximum.accumulate((x * np.cos(turn) + depth * np.sin(turn))[::side])
        source[row] = np.interp(x[::side], place, np.arange(width)[::side])[::side]
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    return np.asarray(cv2.remap(pixels, source, rows, cv2.INTER_LINEAR), np.uint8)


Worsen = Callable[[ImageU8, ArrayF32, float], ImageU8]

WAYS: dict[str, tuple[Worsen, tuple[float, ...]]] = {
    "blurred": (blurred, (0.02, 0.04, 0.06, 0.09, 0.13, 0.2)),
    "shrunk": (shrunk, (48, 32, 24, 16, 12, 8)),
    "darkened": (darkened, (0.5, 0.25, 0.12, 0.06, 0.03, 0.015)),
    "turned": (turned, (10, 20, 30, 40, 50, 60)),
}
"""Each way, and how far: from hardly to beyond use."""


def eyes(landmarks: ArrayF32) -> float:
    """The distance between the eyes, in pixels."""
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


def portraits() -> Iterator[tuple[str, ImageU8]]:
    """The six, by name."""
    for path in PORTRAITS:
        with Image.open(path) as picture:
            yield path.stem, np.asarray(picture.convert("RGB"))


async def look(pipeline: FacePipeline, pixels: ImageU8) -> Face | None:
    """The largest face with quality and embedding; None: there is none."""
    height, width = pixels.shape[:2]
    try:
        found = await pipeline.embed(
            RawPixels(height, width, pixels.tobytes()),
            detector=ModelRef(),
            embedder=ModelRef(),
            selection=FaceSelection(FacePolicy.LARGEST, min_score=0.1, min_face_size=0.0),
            call=Call(),
            inspect=True,
        )
    except Unmet:
        return None
    return found.faces[0]


async def measure(pipeline: FacePipeline) -> list[Made]:
    """Every portrait in every way, each way up to where no face is found any more."""
    made: list[Made] = []
    for name, pixels in portraits():
        whole = await look(pipeline, pixels)
        assert whole is not None
        assert whole.landmarks is not None
        assert whole.embedding is not None
        for way, (worsen, steps) in WAYS.items():
            made.append(Made(name, way, 0, _quality(whole), 1.0))
            for step in steps:
                face = await look(pipeline, worsen(pixels, whole.landmarks, step))
                if face is None:
                    break
                cosine = float(whole.embedding.values @ _embedding(face).values)
                made.append(Made(name, way, step, _quality(face), cosine))
    return made


def _quality(face: Face) -> Quality:
    assert face.quality is not None
    return face.quality


def _embedding(face: Face) -> Embedding:
    assert face.embedding is not None
    return face.embedding


def by_range(made: Sequence[Made]) -> str:
    """For each range of the number, the cosines of the photos that were made worse."""
    rows = []
    for low, high in RANGES:
        cosines = [m.cosine for m in made if m.step and low <= overall(m.quality) < high]
        if cosines:
            shown = f"{low:g} to {high:g}" if high <= 1 else "1"
            figures = (np.mean(cosines), min(cosines), max(cosines))
            rows.append([shown, str(len(cosines)), *(f"{figure:.2f}" for figure in figures)])
    return table(["quality", "photos", "mean cosine", "least", "most"], rows)


def by_step(made: Sequence[Made]) -> str:
    """Of each way and step, the means of the number and of the cosine."""
    rows = []
    for way, (_, steps) in WAYS.items():
        for step in steps:
            those = [m for m in made if (m.way, m.step) == (way, step)]
            if those:
                number = np.mean([overall(m.quality) for m in those])
                cosine = np.mean([m.cosine for m in those])
                rows.append([way, f"{step:g}", str(len(those)), f"{number:.2f}", f"{cosine:.2f}"])
    return table(["way", "step", "photos", "mean quality", "mean cosine"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    arguments = parser.parse_args()
    engine = build_engine(Settings(model_repository=(arguments.model_repository,)))
    engine.loader.start()
    try:
        made = asyncio.run(measure(engine.pipeline))
    finally:
        engine.close()
    print(by_range(made))
    print()
    print(by_step(made))


if __name__ == "__main__":
    main()
