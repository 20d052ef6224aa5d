"""Quantising a small model: which version, on which crops, into which model, and what is refused."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from mien_server.models.interface import ImageU8
from mien_server.repository.config.pbtxt import ConfigError
from mien_server.repository.golden import read_golden
from mien_server.repository.manifest import ManifestError, read_manifest, verify_version
from mien_server.weights.progress import Progress
from mien_server.weights.quantise import QuantiseError, quantise
from tests.integration.test_onnx_scrfd import INPUT, scrfd
from tests.small_models import PIXELS, add_model
from tests.unit.models.scrfd_outputs import SIDE
from tests.unit.weights.test_quantise_graph import SLOPES, network

GRAPH = onnx.load_from_string(network(SLOPES["none above one"], side=112))


def write_crops(folder: Path, count: int, side: int = 112) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        tiles = rng.integers(0, 256, (side // 28, side // 28, 3), dtype=np.uint8)
        picture = tiles.repeat(28, axis=0).repeat(28, axis=1)
        cv2.imwrite(str(folder / f"{index:03}.{('png', 'bmp')[index % 2]}"), picture)
    return folder


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    (folder / "notes.txt").write_text("no crop")
    write_crops(folder / "below", 8)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    add_model(root, "small", GRAPH, "embedder", PIXELS, dimensions=8)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A repository with `small`, which a test may change."""
    return Path(shutil.copytree(original, tmp_path / "models"))


def test_the_highest_version_becomes_the_next_one(root: Path, crops: Path) -> None:
    shutil.copytree(root / "small" / "1", root / "small" / "3")
    said = io.StringIO()
    done = quantise(root, "small", crops, Progress(said))
    assert (done.model, done.version, done.folder) == ("small", 4, root / "small" / "4")
    assert 0.99 <= done.cosine < 1
    manifest = verify_version(done.folder, root, "model.onnx")
    assert manifest.source == "small version 3 quantised to int8 on 8 crops; test"
    assert (manifest.license, read_manifest(root / "small" / "1").source) == ("none", "test")
    assert manifest.importer.endswith(" models quantize")
    assert read_golden(done.folder) is not None
    assert said.getvalue() == (
        "quantising small version 3 on 8 crops\n"
        f"small version 4 is int8: its lowest cosine to fp32 is {done.cosine:.4f}\n"
        "note: no threshold was measured with it: `mien-server evaluate verification --calibrate --embedder"
        " small:4` does that\n"
    )
    assert not [path for path in root.iterdir() if path.name != "small"]


def test_a_version_may_be_named(root: Path, crops: Path) -> None:
    shutil.copytree(root / "small" / "1", root / "small" / "3")
    done = quantise(root, "small", crops, Progress(io.StringIO()), version=1)
    assert read_manifest(done.folder).source.startswith("small version 1 quantised")


@pytest.mark.long
def test_of_very_many_crops_some_are_chosen_evenly(root: Path, tmp_path: Path) -> None:
    many = write_crops(tmp_path / "many", 257)
    (many / "001.bmp").write_bytes(b"passed over")
    said = io.StringIO()
    quantise(root, "small", many, Progress(said))
    assert "on 129 crops" in said.getvalue()


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("bright", None, "bright is no embedding model"),
        ("empty", None, "empty has no version: install or import its weights first"),
        ("small", 7, r"small has no version 7, only \[1\]"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    root: Path, crops: Path, name: str, version: int | None, problem: str
) -> None:
    add_model(root, "bright", scrfd(batched=True), "scrfd", INPUT, side=SIDE)
    shutil.copytree(root / "small", root / "empty", ignore=shutil.ignore_patterns("1"))
    config = root / "empty" / "config.pbtxt"
    config.write_text(config.read_text().replace('"small"', '"empty"'))
    with pytest.raises(QuantiseError, match=problem):
        quantise(root, name, crops, Progress(io.StringIO()), version=version)


@pytest.mark.parametrize(
    ("count", "side", "problem"), [(7, 112, "has 7 pictures"), (8, 84, "000.png")]
)
def test_crops_that_say_too_little_are_refused(
    root: Path, tmp_path: Path, count: int, side: int, problem: str
) -> None:
    with pytest.raises(QuantiseError, match=problem):
        quantise(
            root, "small", write_crops(tmp_path / "crops", count, side), Progress(io.StringIO())
        )
    assert not (root / "small" / "2").exists()


def test_photos_are_given_to_who_can_align_them_and_crops_are_not(
    root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    write_crops(folder / "crops", 5)
    write_crops(folder / "photos", 4, side=224)
    given: list[Path] = []

    def align(photos: Sequence[Path]) -> list[ImageU8]:
        given.extend(photos)
        return [np.full((112, 112, 3), 50 * n, np.uint8) for n in range(3)]

    said = io.StringIO()
    quantise(root, "small", folder, Progress(said), align=align)
    assert "on 8 crops" in said.getvalue()
    assert {path.parent.name for path in given} == {"photos"}
    assert len(given) == 4
    with pytest.raises(QuantiseError, match="has 5 faces"):
        quantise(root, "small", folder, Progress(io.StringIO()), align=lambda _: [])


def test_an_int8_version_is_not_quantised_again(root: Path, crops: Path) -> None:
    quantise(root, "small", crops, Progress(io.StringIO()))
    with pytest.raises(QuantiseError, match=r"2/model\.onnx computes in int8; quantise the fp32"):
        quantise(root, "small", crops, Progress(io.StringIO()))


def test_files_that_are_not_what_they_should_be_stop_it(root: Path, crops: Path) -> None:
    with pytest.raises(ConfigError, match="nobody"):
        quantise(root, "nobody", crops)
    (root / "small" / "1" / "model.onnx").write_bytes(b"half")
    with pytest.raises(ManifestError, match="has 4 bytes"):
        quantise(root, "small", crops)


def test_a_repository_that_cannot_be_written_is_said(root: Path, crops: Path) -> None:
    (root / "small" / ".install.lock").mkdir()
    with pytest.raises(QuantiseError, match=r"install\.lock"):
        quantise(root, "small", crops, Progress(io.StringIO()))
