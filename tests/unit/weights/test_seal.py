"""A version folder that was filled by hand becomes a version."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mien_server.backends.weights_file import LoadError
from mien_server.commands.main import main
from mien_server.models.families import families
from mien_server.repository.golden import read_golden
from mien_server.repository.manifest import read_manifest, verify_version, write_manifest
from mien_server.weights.progress import Progress
from mien_server.weights.seal import SealRefused, seal
from mien_server.weights.write.golden import renew_golden


@pytest.fixture
def folder(repository: Path) -> Path:
    """Random weights of sface, as its third version."""
    folder = repository / "sface" / "3"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(families()["sface"].network().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def light(repository: Path) -> Path:
    """The same of mtcnn, which is sealed in a fraction of the time. It finds nothing: no golden file."""
    folder = repository / "mtcnn" / "3"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(families()["mtcnn"].network().state_dict(), folder / "model.safetensors")
    return folder


def test_a_sealed_folder_is_a_version_with_all_that_others_have(
    repository: Path, folder: Path
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    (folder / "notes.txt").write_text("epoch 12")
    flags = [
        "--license",
        "ours",
        "--source",
        "trained by us",
        "--model-repository",
        str(repository),
    ]
    assert main(["models", "seal", "sface", "--version", "3", *flags]) == 0
    manifest = verify_version(folder, repository, "model.safetensors")
    assert set(manifest.files) == {
        "model.safetensors",
        "graph.onnx",
        "golden.safetensors",
        "notes.txt",
    }
    assert (manifest.license, manifest.source) == ("ours", "trained by us")
    assert manifest.importer.endswith("models seal")
    assert (folder / "model.safetensors").read_bytes() == before
    assert read_golden(folder) is not None


def test_licence_and_source_are_what_the_configuration_says(repository: Path, light: Path) -> None:
    seal(repository, "mtcnn", 3)
    manifest = read_manifest(light)
    assert manifest.license == "MIT"
    assert manifest.source.startswith("timesler/facenet-pytorch")


def test_what_is_sealed_is_left_as_it_is(repository: Path, light: Path) -> None:
    seal(repository, "mtcnn", 3)
    before = (light / "manifest.json").read_bytes()
    with pytest.raises(
        SealRefused, match=r"has a manifest\.json .* models check mtcnn --version 3"
    ):
        seal(repository, "mtcnn", 3)
    assert (light / "manifest.json").read_bytes() == before


@pytest.mark.long
def test_what_was_measured_stays_when_a_version_is_written_anew(
    repository: Path, folder: Path
) -> None:
    (folder / "thresholds.json").write_text("measured")
    seal(repository, "sface", 3)
    assert "thresholds.json" not in read_manifest(folder).files
    (folder / "golden.safetensors").unlink()
    verified = read_manifest(folder)
    write_manifest(
        folder,
        verified.model_copy(
            update={"files": {k: v for k, v in verified.files.items() if "golden" not in k}}
        ),
    )
    renew_golden(repository, folder, "model.safetensors", Progress())
    assert read_golden(folder) is not None
    assert (folder / "thresholds.json").read_text() == "measured"


def test_weights_of_another_network_are_refused_and_stay(repository: Path, folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(LoadError, match=r"model\.safetensors"):
        seal(repository, "sface", 3)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors"}


def test_a_folder_that_cannot_be_one_is_refused(
    repository: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SealRefused, match=r"there is no folder .*sface/7"):
        seal(repository, "sface", 7)
    with pytest.raises(SealRefused, match=r"nobody/config\.pbtxt: write it first"):
        seal(repository, "nobody", 1)
    with pytest.raises(SealRefused, match="is an ensemble"):
        seal(repository, "face_embedding", 1)
    (folder / "more").mkdir()
    with pytest.raises(SealRefused, match="more is no file of its own"):
        seal(repository, "sface", 3)
    (folder / "more").rmdir()
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(SealRefused, match=r"has no model\.safetensors"):
        seal(repository, "sface", 3)
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SealRefused, match="is no file of its own"):
        seal(repository, "sface", 3)
