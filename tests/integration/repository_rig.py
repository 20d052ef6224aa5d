"""A repository with real weights that a test may write to, and the face pipeline on top of it."""

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from safetensors.numpy import load_file

from mien_server.backends.weights_file import GRAPH
from mien_server.engine import build_engine
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.types import (
    AlignedFace,
    Call,
    Embedding,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ModelRef,
    PhotoFaces,
)
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.loader import Loader
from mien_server.repository.manifest import describe, write_manifest
from mien_server.settings import Settings
from mien_server.weights.write.version_folder import write_tensors
from tests.conftest import ROOT, without_warm_ups

SECONDS = 60
LARGEST = FaceSelection(FacePolicy.LARGEST)


@dataclass
class Rig:
    """A repository in memory and its pipeline.

    Attributes:
        root: the repository's folder.
    """

    root: Path
    catalogue: Catalogue
    loader: Loader
    pipeline: FacePipeline

    async def detect(self, photo: bytes) -> PhotoFaces:
        """The largest face."""
        return await self.pipeline.detect(
            EncodedImage(photo), detector=ModelRef(), selection=LARGEST, call=Call()
        )

    async def embed(self, photo: bytes, *, aligned: bool = False) -> Embedding:
        """The vector of the largest face, or of an aligned crop, for which no detector is needed."""
        image = EncodedImage(photo)
        found = await self.pipeline.embed(
            AlignedFace(image) if aligned else image,
            detector=ModelRef(),
            embedder=ModelRef(),
            selection=LARGEST,
            call=Call(),
        )
        embedding = found.faces[0].embedding
        assert embedding is not None
        return embedding


def copy_repository(
    source: Path, target: Path, models: Sequence[str] = ("retinaface", "sface")
) -> Path:
    """Shipped models with their real weights, to be written to."""
    for name in models:
        shutil.copytree(source / name, target / name)
    return target


def with_warm_ups(root: Path) -> Path:
    """Gives the models of a repository the configurations as they are shipped, warm-ups and all."""
    for config in root.glob("*/config.pbtxt"):
        shutil.copy(ROOT / "model_repository" / config.parent.name / "config.pbtxt", config)
    return root


def lighten(root: Path) -> Path:
    """Has the models of a repository load quickly: no warm-ups, and one canvas, of 320 pixels."""
    for config in root.glob("*/config.pbtxt"):
        text = without_warm_ups(config.read_text())
        config.write_text(text.replace('"320, 640, 1024"', '"320"'))
    return root


@contextmanager
def open_rig(root: Path, *, seed: int = 0) -> Iterator[Rig]:
    """Loads all of a repository, and closes everything in the end."""
    settings = Settings(model_repository=(root,), model_control_mode="explicit", load_model=("*",))
    engine = build_engine(settings, draw=random.Random(seed))  # noqa: S311
    engine.loader.start()
    try:
        yield Rig(root, engine.catalogue, engine.loader, engine.pipeline)
    finally:
        closed = engine.close(SECONDS)
    assert closed


def write_variant(source: Path, folder: Path, factor: float) -> Path:
    """A version folder with the weights of another, all convolutions multiplied by a factor."""
    state = load_file(source / "model.safetensors")
    state = {key: value * factor if value.ndim == 4 else value for key, value in state.items()}
    folder.mkdir()
    write_tensors(folder / "model.safetensors", state)
    shutil.copy(source / GRAPH, folder)  # the tensors stand where they stood
    facts = describe(folder, source="", license_="", created=datetime.now(UTC), importer="pytest")
    write_manifest(folder, facts)
    return folder
