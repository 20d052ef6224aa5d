"""Canary and shadow with real weights, through the pipeline; every call and every copy is counted."""

import asyncio
import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from mien_server.pipeline.mirroring import MOST_WAITING
from mien_server.pipeline.types import AlignedFace, Call, EncodedImage, ModelRef
from mien_server.repository.traffic import ShadowStatistics
from mien_server.weights.write.version_folder import write_tensors
from tests.integration.repository_rig import (
    LARGEST,
    SECONDS,
    Rig,
    copy_repository,
    lighten,
    open_rig,
    write_variant,
)
from tests.unit.repository.folders import keep_versions, parameter, seal, traffic


@pytest.fixture
def detector_root(tmp_path: Path, model_repository_path: Path) -> Path:
    """A repository with retinaface alone."""
    return lighten(copy_repository(model_repository_path, tmp_path / "repository", ["retinaface"]))


@pytest.fixture
def embedder_root(tmp_path: Path, model_repository_path: Path) -> Path:
    """A repository with sface alone, which needs no detector to embed crops."""
    return lighten(copy_repository(model_repository_path, tmp_path / "repository", ["sface"]))


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in portraits]


@pytest.fixture(scope="module")
def crops(portraits: list[Path]) -> list[bytes]:
    """The portraits in the size of an aligned face, as PNG."""
    made = []
    for path in portraits:
        file = io.BytesIO()
        with Image.open(path) as portrait:
            portrait.convert("RGB").resize((112, 112)).save(file, "PNG")
        made.append(file.getvalue())
    return made


@contextmanager
def shadowed(root: Path, name: str, factor: float) -> Iterator[Rig]:
    """Version 1, and beside it as its shadow a version 2 with other convolutions."""
    write_variant(root / name / "1", root / name / "2", factor)
    keep_versions(root, name, 2)
    parameter(root, name, "shadow_version", 2)
    with open_rig(root) as rig:
        yield rig


def counted(rig: Rig, name: str) -> ShadowStatistics:
    return traffic(rig.catalogue, name).shadows.get(2, ShadowStatistics())


async def settled(rig: Rig, name: str, rows: int) -> ShadowStatistics:
    """The counts once the shadow has done with so many rows."""
    give_up = time.monotonic() + SECONDS
    while True:
        counts = counted(rig, name)
        if counts.compared + counts.failed + counts.dropped >= rows:
            return counts
        assert time.monotonic() < give_up, counts
        await asyncio.sleep(0.01)


async def test_canary_answers_its_share_of_the_calls(
    embedder_root: Path, crops: list[bytes]
) -> None:
    write_variant(embedder_root / "sface" / "1", embedder_root / "sface" / "2", 1.01)
    keep_versions(embedder_root, "sface", 2)
    parameter(embedder_root, "sface", "canary_version", 2)
    parameter(embedder_root, "sface", "canary_percent", 30)
    answered: Counter[int] = Counter()
    with open_rig(embedder_root) as rig:
        prints = {v: rig.catalogue.resolve("sface", v).fingerprint for v in (1, 2)}
        for turn in range(6):
            embeddings = await asyncio.gather(*(rig.embed(crop, aligned=True) for crop in crops))
            for embedding in embeddings:
                assert embedding.model.fingerprint == prints[embedding.model.version]
                answered[embedding.model.version] += 1
            assert traffic(rig.catalogue, "sface").routed == answered, turn
    assert answered.total() == 36
    assert 2 <= answered[2] <= 20, "30 % of 36 is 11, three standard deviations are 8"


@pytest.mark.long
async def test_embedding_of_the_canary_compares_whichever_version_is_drawn(
    embedder_root: Path, crops: list[bytes]
) -> None:
    write_variant(embedder_root / "sface" / "1", embedder_root / "sface" / "2", 1.01)
    keep_versions(embedder_root, "sface", 2)
    parameter(embedder_root, "sface", "canary_version", 2)
    parameter(embedder_root, "sface", "canary_percent", 50)
    with open_rig(embedder_root) as rig:
        made_by: set[int] = set()
        while len(made_by) < 2:
            embedding = await rig.embed(crops[0], aligned=True)
            made_by.add(embedding.model.version)
            for _ in range(4):
                compared = await rig.pipeline.verify(
                    embedding,
                    AlignedFace(EncodedImage(crops[0])),
                    detector=ModelRef(),
                    embedder=ModelRef("sface"),
                    selection=LARGEST,
                    threshold=None,
                    call=Call(),
                )
                assert compared.similarity > 0.999


@pytest.mark.parametrize(
    ("name", "factor", "agreed"),
    [("sface", 1.0, 6), pytest.param("sface", -1.0, 0, marks=pytest.mark.long)],
)
async def test_shadow_is_compared_and_never_returned(
    embedder_root: Path, crops: list[bytes], name: str, factor: float, agreed: int
) -> None:
    with shadowed(embedder_root, name, factor) as rig:
        for number, crop in enumerate(crops):
            embedding = await rig.embed(crop, aligned=True)
            assert embedding.model.version == 1
            await settled(rig, name, number + 1)
        assert traffic(rig.catalogue, name).routed == {1: 6}
        assert counted(rig, name) == ShadowStatistics(compared=6, agreed=agreed)


@pytest.mark.parametrize(
    ("factor", "agree"), [(1.0, True), pytest.param(0.0, False, marks=pytest.mark.long)]
)
async def test_shadow_detector_is_compared_by_its_boxes(
    detector_root: Path, photos: list[bytes], factor: float, agree: bool
) -> None:
    with shadowed(detector_root, "retinaface", factor) as rig:
        for number, photo in enumerate(photos):
            assert (await rig.detect(photo)).faces
            await settled(rig, "retinaface", number + 1)
        counts = counted(rig, "retinaface")
        assert counts.dropped == counts.failed == 0
        assert counts.agreed == (counts.compared if agree else 0)
        assert counts.compared >= 6


@pytest.mark.long
async def test_shadow_that_cannot_answer_harms_no_call(
    embedder_root: Path, crops: list[bytes]
) -> None:
    with shadowed(embedder_root, "sface", 1.0) as rig:
        candidate = rig.catalogue.resolve("sface", 2).slot
        instance = candidate.instances[0].instance
        instance.compute = lambda batch: 1 / 0  # type: ignore[method-assign]
        for number, crop in enumerate(crops):
            assert (await rig.embed(crop, aligned=True)).model.version == 1
            await settled(rig, "sface", number + 1)
        assert counted(rig, "sface") == ShadowStatistics(failed=6)


@pytest.mark.long
async def test_copies_are_dropped_when_there_is_other_work(
    embedder_root: Path, crops: list[bytes]
) -> None:
    with shadowed(embedder_root, "sface", 1.0) as rig:
        rounds = 4
        for _ in range(rounds):
            embeddings = await asyncio.gather(
                *(rig.embed(crop, aligned=True) for crop in crops * 4)
            )
            assert {embedding.model.version for embedding in embeddings} == {1}
            assert rig.catalogue.resolve("sface", 2).slot.pending <= MOST_WAITING
        counts = await settled(rig, "sface", rounds * 24)
        assert counts.compared + counts.dropped == rounds * 24
        assert counts.agreed == counts.compared
        assert counts.dropped > 0


@pytest.mark.long
async def test_retired_shadow_finishes_its_copies_and_is_freed(
    embedder_root: Path, crops: list[bytes]
) -> None:
    with shadowed(embedder_root, "sface", 1.0) as rig:
        for number in range(1, 4):
            await rig.embed(crops[0], aligned=True)
            state = load_file(embedder_root / "sface" / "1" / "model.safetensors")
            state["fc.weight"] *= 1 + 1e-6 * number
            write_tensors(embedder_root / "sface" / "2" / "model.safetensors", state)
            seal(embedder_root / "sface" / "2")
            await asyncio.wrap_future(rig.loader.load("sface"))
            assert await asyncio.to_thread(rig.catalogue.drained, SECONDS)
        counts = await settled(rig, "sface", 3)
        assert counts.failed == 0
