"""Plain photos where aligned faces are needed: for quantising, and as `mien crop` writes them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import mien
from mien import cli
from mien_server.commands.main import main
from mien_server.evaluation.crops import aligned_faces
from mien_server.evaluation.loaded import EvaluationError
from mien_server.repository.manifest import read_manifest
from mien_server.settings import Settings
from tests.integration.repository_rig import copy_repository, lighten
from tests.small_models import PIXELS, add_model
from tests.unit.weights.test_quantise_graph import SLOPES, network


@pytest.fixture
def root(model_repository_path: Path, tmp_path: Path) -> Path:
    """The real detector."""
    return lighten(copy_repository(model_repository_path, tmp_path / "models", ["retinaface"]))


@pytest.fixture
def photos(portraits: list[Path], tmp_path: Path) -> Path:
    """The sample portraits and their mirror images, small; and what is no portrait."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in portraits:
        with Image.open(path) as photo:
            photo.thumbnail((320, 320))
            photo.save(folder / path.name, quality=95)
            mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mirrored.save(folder / f"mirrored_{path.name}", quality=95)
    Image.new("RGB", (200, 200), "gray").save(folder / "nobody.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_faces_are_found_and_the_others_are_named(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(model_repository=(root,))
    crops = aligned_faces(settings, sorted(photos.iterdir()))
    assert [crop.shape for crop in crops] == [(112, 112, 3)] * 12
    said = capsys.readouterr().err
    assert "nobody.png: no face was found" in said
    assert "broken.jpg: " in said
    with pytest.raises(EvaluationError, match="retinaface finds a face in none of 2 photos"):
        aligned_faces(settings, [photos / "nobody.png", photos / "broken.jpg"])


@pytest.mark.long
def test_a_model_is_quantised_on_photos(root: Path, photos: Path) -> None:
    graph = onnx.load_from_string(network(SLOPES["none above one"], side=112))
    add_model(root, "small", graph, "embedder", PIXELS, dimensions=8)
    flags = ["--calibration", str(photos), "--model-repository", str(root)]
    assert main(["models", "quantize", "small", *flags]) == 0
    assert "on 12 crops" in read_manifest(root / "small" / "2").source


def test_crops_of_the_command_are_those_of_the_server(
    server_address: str, portraits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "crops"
    arguments = ["crop", *map(str, portraits), "--out", str(out), "--address", server_address]
    assert cli.main(arguments) == 0
    assert "6 photos, 6 faces" in capsys.readouterr().out
    with mien.Client(server_address, timeout=60) as client:
        for path in portraits:
            crop = out / f"{path.stem}.png"
            with Image.open(crop) as picture:
                assert (picture.size, picture.mode) == ((112, 112), "RGB")
            whole = client.embed(path).embedding
            alone = client.embed(crop, aligned=True).embedding
            assert whole is not None
            assert alone is not None
            assert float(np.dot(whole.values, alone.values)) >= 0.999


def test_folders_keep_their_shape_and_a_failure_ends_no_other(
    server_address: str,
    sample: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for person, name in (("ada", "person_a_1"), ("bob", "person_b_1")):
        (tmp_path / "photos" / person).mkdir(parents=True)
        shutil.copy(sample(name), tmp_path / "photos" / person / "0001.jpg")
    Image.new("RGB", (200, 200), "gray").save(tmp_path / "photos" / "nobody.png")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    out = tmp_path / "out"
    arguments = ["crop", str(tmp_path / "photos"), "--out", str(out), "--address", server_address]
    assert cli.main(arguments) == 1
    told = capsys.readouterr()
    assert "3 photos, 2 faces, 1 failed" in told.out
    assert "nobody.png: no face" in told.err
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert found == ["ada/0001.png", "bob/0001.png"]
