"""Where imported weights go: models, versions, packs of several, and what stays as it was."""

import multiprocessing
import os
import shutil
import zipfile
from pathlib import Path

import onnx
import pytest
import torch

from mien_server.errors import OperatorError
from mien_server.models.families import find_family
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.repository.config.pbtxt import ConfigError, ConfigText
from mien_server.repository.manifest import read_manifest, verify_version
from mien_server.weights.importer import ImportRefused, import_weights
from mien_server.weights.write import version_folder
from tests.unit.weights.conftest import Import, config_of
from tests.unit.weights.onnx_files import one_layer, scrfd
from tests.unit.weights.public_networks import shared_network

LEFT = {"config.pbtxt", version_folder.LOCK}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RetinaFace with the small backbone."""
    path = tmp_path_factory.mktemp("checkpoint") / "mobilenet0.25_Final.pth"
    torch.save(shared_network("retinaface_mobilenet0.25").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest network that can be imported, for tests that look at its folder only."""
    folder = tmp_path_factory.mktemp("embedder")
    return one_layer(folder / "mbf.onnx", ["n", 3, 112, 112], 64)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A zip archive of the shape of InsightFace's buffalo packs."""
    folder = tmp_path / "buffalo"
    folder.mkdir()
    scrfd(folder / "det_10g.onnx")
    one_layer(folder / "w600k_mbf.onnx", ["n", 3, 112, 112], 512)
    one_layer(folder / "2d106det.onnx", [1, 3, 192, 192], 212)
    (folder / "README.md").write_text("models for research")
    path = tmp_path / "buffalo_s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"buffalo_s/{file.name}")
    return path


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_next_version_is_one_more_than_the_highest(
    repository: Path, bring: Import, embedder: Path
) -> None:
    assert [bring("mbf", embedder)[0][0].version for _ in range(2)] == [1, 2]
    config = (repository / "mbf" / "config.pbtxt").read_bytes()
    assert bring("mbf", embedder, version=7)[0][0].version == 7
    assert bring("mbf", embedder)[0][0].version == 8
    assert names_in(repository / "mbf") == LEFT | {"1", "2", "7", "8"}
    assert (repository / "mbf" / "config.pbtxt").read_bytes() == config


def test_version_that_exists_is_never_replaced(
    repository: Path, bring: Import, embedder: Path
) -> None:
    (first,), _ = bring("mbf", embedder)
    before = (first.folder / "manifest.json").read_bytes()
    with pytest.raises(ImportRefused, match=r"mbf/1 exists and is left as it is.* for 2"):
        bring("mbf", embedder, version=1)
    assert (first.folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("version", [0, -1, 10**18])
def test_version_must_be_a_number_that_the_repository_has(
    version: int, bring: Import, checkpoint: Path
) -> None:
    with pytest.raises(ImportRefused, match="must be a whole number from 1 on"):
        bring("retinaface", checkpoint, version=version)


@pytest.mark.parametrize("model", ["", ".hidden", "../elsewhere", "a/b", "-x", "a b", "ä"])
def test_name_must_be_that_of_a_folder(
    model: str, repository: Path, bring: Import, checkpoint: Path
) -> None:
    before = names_in(repository)
    with pytest.raises(ImportRefused, match="is no name for a model"):
        bring(model, checkpoint)
    assert names_in(repository) == before


def test_model_folder_that_leads_out_of_the_repository_is_refused(
    tmp_path: Path, repository: Path, bring: Import, checkpoint: Path
) -> None:
    shutil.move(repository / "retinaface", tmp_path / "elsewhere")
    (repository / "retinaface").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImportRefused, match="link that leads out of the repository"):
        bring("retinaface", checkpoint)
    assert names_in(tmp_path / "elsewhere") == {"config.pbtxt"}


def test_what_is_no_repository_or_no_file_is_refused(
    tmp_path: Path, repository: Path, checkpoint: Path
) -> None:
    (tmp_path / "README").write_text("models")
    with pytest.raises(ImportRefused, match="README is not a folder"):
        import_weights(tmp_path / "README", "retinaface", checkpoint)
    with pytest.raises(ImportRefused, match=r"nothing\.pth is no file and no folder"):
        import_weights(repository, "retinaface", tmp_path / "nothing.pth")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImportRefused, match="pipe is no file and no folder"):
        import_weights(repository, "retinaface", tmp_path / "pipe")


def test_repository_that_is_not_there_is_made(tmp_path: Path, embedder: Path) -> None:
    root = tmp_path / "srv" / "models"
    (done,) = import_weights(root, "mbf", embedder)
    verify_version(done.folder, root, "model.onnx")
    assert names_in(root / "mbf") == LEFT | {"1"}


def test_repository_that_was_made_for_nothing_is_taken_back(tmp_path: Path, embedder: Path) -> None:
    with pytest.raises(ImportRefused, match="no model fits"):
        import_weights(tmp_path / "srv" / "models", None, embedder)
    broken = one_layer(tmp_path / "other.onnx", ["n", 3, 112, 112], 64, seed=1)
    graph = onnx.load(broken)
    graph.graph.initializer[0].raw_data = b"\xff" * len(graph.graph.initializer[0].raw_data)
    onnx.save(graph, broken)
    with pytest.raises(OperatorError):
        import_weights(tmp_path / "srv" / "models", "mine", broken)
    assert not (tmp_path / "srv").exists()


def test_manifest_says_where_the_weights_come_from_and_who_may_use_them(
    bring: Import, checkpoint: Path, embedder: Path
) -> None:
    (plain,), said = bring("retinaface", checkpoint)
    manifest = read_manifest(plain.folder)
    assert manifest.source.startswith("mobilenet0.25_Final.pth; mobilenet0.25_Final.pth sha256 ")
    assert manifest.license == "not stated; biubug6's public weights are MIT"
    assert f"licence: {manifest.license}" in said
    assert manifest.importer.endswith(" models import")

    (told,), said = bring("mbf", embedder, license_="MIT", source="trained by us")
    manifest = read_manifest(told.folder)
    assert manifest.source.startswith("trained by us; mbf.onnx sha256 ")
    assert manifest.license == "MIT"
    assert "licence: MIT" in said


def test_new_model_gets_a_configuration_that_the_server_can_read(
    repository: Path, bring: Import, checkpoint: Path
) -> None:
    license_ = 'say "please";\n\tC:\\weights, naïve'
    (done,), said = bring("mine", checkpoint, license_=license_)
    config = config_of(repository / "mine")
    assert config.role is DETECTOR
    assert config.options.buckets == (320, 640, 1024)
    assert config.license == 'say "please"; C:\\weights, naïve'
    assert f"{repository / 'mine' / 'config.pbtxt'} is new: read it through" in said
    verify_version(done.folder, repository, "model.safetensors")
    assert names_in(repository / "mine") == LEFT | {"1"}


def test_failed_write_of_a_new_model_leaves_no_trace(
    repository: Path, bring: Import, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mien_server.weights.importer.write_tensors", disk_is_full)
    before = names_in(repository)
    with pytest.raises(ImportRefused, match="No space left on device"):
        bring("mine", checkpoint)
    assert names_in(repository) == before
    with pytest.raises(ImportRefused, match="No space left on device"):
        bring("retinaface", checkpoint)
    assert names_in(repository / "retinaface") == LEFT


def test_configuration_that_prepares_pixels_otherwise_is_pointed_out(
    repository: Path, bring: Import, checkpoint: Path
) -> None:
    config = repository / "retinaface" / "config.pbtxt"
    config.write_text(config.read_text().replace('"BGR"', '"RGB"'))
    _, said = bring("retinaface", checkpoint)
    assert f"note: {config} prepares pixels in another way" in said
    assert 'channel_order "BGR", mean "104, 117, 123", scale "1"' in said


def test_configuration_that_cannot_be_read_stops_the_import(
    repository: Path, bring: Import, checkpoint: Path
) -> None:
    config = repository / "retinaface" / "config.pbtxt"
    config.write_text("backend = pytorch")
    with pytest.raises(ConfigError, match="retinaface"):
        bring("retinaface", checkpoint)
    assert names_in(repository / "retinaface") == {"config.pbtxt"}


def test_embedding_of_another_size_than_configured_is_refused(
    tmp_path: Path, repository: Path, bring: Import
) -> None:
    bring("mbf", one_layer(tmp_path / "a.onnx", ["n", 3, 112, 112], 512))
    with pytest.raises(
        ImportRefused, match=r"give 128 dimensions, but .* says output dims \[512\]"
    ):
        bring("mbf", one_layer(tmp_path / "b.onnx", ["n", 3, 112, 112], 128))
    assert names_in(repository / "mbf") == LEFT | {"1"}


def test_without_a_name_the_only_model_of_that_network_is_meant(
    repository: Path, bring: Import, checkpoint: Path, tmp_path: Path
) -> None:
    (done,), _ = bring(None, checkpoint)
    assert done.model == "retinaface"
    with pytest.raises(ImportRefused, match=r"no model fits architecture 'scrfd'.*name the model"):
        bring(None, scrfd(tmp_path / "det.onnx"))
    shutil.copytree(repository / "retinaface", repository / "second")
    config = repository / "second" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "retinaface"', ""))
    with pytest.raises(ImportRefused, match=r"2 models fit \(retinaface, second\)"):
        bring(None, checkpoint)


def test_pack_under_a_new_name_becomes_a_model_for_each_network(
    repository: Path, bring: Import, pack: Path
) -> None:
    done, said = bring("buffalo_s", pack)
    assert [each.model for each in done] == ["buffalo_s-det_10g", "buffalo_s-w600k_mbf"]
    for each in done:
        assert {"model.onnx", "manifest.json"} <= names_in(each.folder)
        assert read_manifest(each.folder).source.startswith("buffalo_s.zip; ")
    assert "skipped: 2d106det.onnx: its graph takes data [1, 3, 192, 192]" in said
    assert "skipped: README.md is no PyTorch, safetensors or ONNX file" in said
    assert not (repository / "buffalo_s").exists()


def test_pack_for_a_model_that_exists_gives_it_the_one_that_fits(
    repository: Path, bring: Import, pack: Path
) -> None:
    (model,) = [
        each
        for each in bring("new", pack)[0]
        if find_family(each.recognised.architecture).role is EMBEDDER
    ]
    (done,), said = bring(model.model, pack)
    assert (done.model, done.version) == (model.model, 2)
    assert "skipped: det_10g.onnx is architecture 'scrfd' on backend 'onnxruntime', not for" in said
    with pytest.raises(
        ImportRefused, match=r"det_10g.onnx, w600k_mbf.onnx is .*sface/config\.pbtxt"
    ):
        bring("sface", pack)


def test_pack_never_puts_a_network_into_a_model_of_another(
    repository: Path, bring: Import, pack: Path
) -> None:
    shutil.copytree(repository / "sface", repository / "buffalo_s-w600k_mbf")
    config = repository / "buffalo_s-w600k_mbf" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "sface"', ""))
    with pytest.raises(ImportRefused, match=r"w600k_mbf\.onnx is architecture 'embedder'.*'sface'"):
        bring("buffalo_s", pack)
    assert names_in(config.parent) == LEFT


def test_files_of_one_name_in_a_folder_are_refused(
    repository: Path, bring: Import, checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "both" / name).mkdir(parents=True)
        shutil.copy(checkpoint, tmp_path / "both" / name)
    with pytest.raises(ImportRefused, match=r"several files are called mobilenet0\.25_Final"):
        bring("new", tmp_path / "both")
    assert "new" not in names_in(repository)


def test_folder_is_imported_like_a_pack(
    repository: Path, bring: Import, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshot"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(checkpoint, folder / "sub")
    (folder / "configuration.json").write_text("{}")
    (done,), said = bring("retinaface", folder)
    assert done.model == "retinaface"
    assert "skipped: configuration.json" in said
    shutil.copy(checkpoint, folder / "other.pth")
    with pytest.raises(ImportRefused, match="several files fit retinaface"):
        bring("retinaface", folder)


def test_imports_at_once_get_a_version_each(repository: Path, embedder: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([import_weights.__module__])  # torch is imported once for both
    both = [
        context.Process(target=import_weights, args=(repository, "mine", embedder))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert names_in(repository / "mine") == LEFT | {"1", "2"}
    for version in ("1", "2"):
        verify_version(repository / "mine" / version, repository, "model.onnx")
    ConfigText.read(repository / "mine" / "config.pbtxt")
