"""A server on the processor does without PyTorch, which takes seconds and hundreds of megabytes."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from mien import Client
from mien_server.backends.weights_file import GRAPH
from mien_server.repository.golden import read_golden
from tests.conftest import LaunchServer
from tests.integration.repository_rig import copy_repository
from tests.unit.weights.onnx_files import one_layer
from tools.local_server import PROGRAM, LocalServer, local_server

ROOT = Path(__file__).resolve().parents[2]
CURE = (
    "PyTorch is not installed, which this needs: pip install 'mien[torch]', or 'mien[gpu]' for GPUs"
)


def libraries(pid: int) -> str:
    """The shared libraries that a process has loaded, among other files."""
    return Path(f"/proc/{pid}/maps").read_text()


def test_default_models_answer_without_it(
    server: LocalServer, sample: Callable[[str], Path]
) -> None:
    with Client(server.address) as client:
        assert client.embed(sample("person_a_1")).faces
        loaded = libraries(server.process.pid)
        assert "libopenvino" in loaded
        assert "libtorch" not in loaded


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """Variables with which a program finds no PyTorch."""
    path = [ROOT / "tests" / "without_pytorch", os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, path)))}


def run(environment: Mapping[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command of mien-server that finds no PyTorch."""
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def bare(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose models were installed without PyTorch."""
    repository = tmp_path_factory.mktemp("bare") / "models"
    done = run(environment, "models", "install", "--model-repository", repository)
    assert done.returncode == 0, done.stderr
    return repository


@pytest.mark.long
def test_models_installed_without_it_are_the_same(bare: Path, model_repository_path: Path) -> None:
    for name in ("retinaface", "sface"):
        ours, theirs = bare / name / "1", model_repository_path / name / "1"
        for file in ("model.safetensors", GRAPH):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
        # What onnxruntime answered in one stands beside what PyTorch answered in the other.
        golden, reference = read_golden(ours), read_golden(theirs)
        assert golden is not None
        assert reference is not None
        assert np.array_equal(golden.pictures, reference.pictures)
        assert (golden.role.cosines(reference.expected, golden.expected) > 0.999999).all()


@pytest.mark.long
def test_they_are_listed_checked_and_served_without_it(
    environment: Mapping[str, str], bare: Path, sample: Callable[[str], Path], tmp_path: Path
) -> None:
    at = ("--model-repository", bare)
    assert "whole" in run(environment, "models", "ls", *at).stdout
    check = run(environment, "models", "check", "sface", "--make-golden", *at)
    assert "passed" in check.stdout, check.stderr
    flags = ["--model-repository", str(bare)]
    log = tmp_path / "server.log"
    with local_server(log, flags=flags, environment=environment) as server:
        port = server.address.rpartition(":")[2]
        assert run({**environment, "MIEN_GRPC_PORT": port}, "health").returncode == 0
        with Client(server.address) as client:
            first, second = (sample(f"person_a_{n}") for n in (1, 2))
            assert client.verify(first, second).matched


def test_what_needs_it_says_so_in_a_line(
    environment: Mapping[str, str], model_repository_path: Path, tmp_path: Path
) -> None:
    repository = copy_repository(model_repository_path, tmp_path / "models")
    weights = repository / "sface" / "1" / "model.safetensors"
    commands: list[list[object]] = [
        ["models", "install", "mtcnn"],
        ["models", "import", "mine", weights],
        ["models", "quantize", "sface", "--calibration", ROOT / "samples"],
    ]
    for command in commands:
        done = run(environment, *command, "--model-repository", repository)
        assert done.returncode == 1
        assert CURE in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert not (repository / "mtcnn").exists(), "nothing is begun"

    config = repository / "sface" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_AUTO", "KIND_GPU"))
    done = run(environment, "models", "check", "sface", "--model-repository", repository)
    assert done.returncode == 1
    assert CURE in done.stderr, done.stderr


@pytest.mark.long
def test_a_graph_is_imported_and_checked_without_it(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    repository, graph = (
        tmp_path / "models",
        one_layer(tmp_path / "mine.onnx", ("n", 3, 112, 112), 64),
    )
    at = ("--model-repository", repository)
    done = run(environment, "models", "import", "mine", graph, *at)
    assert done.returncode == 0, done.stderr
    assert "architecture 'embedder' on backend 'onnxruntime'" in done.stderr
    assert read_golden(repository / "mine" / "1") is not None
    config = repository / "mine" / "config.pbtxt"
    text = re.sub(r"(batch_size: )(\d+|\[ \d+ \])", r"\g<1>1", config.read_text())
    config.write_text(text)  # quickly timed
    assert "passed" in run(environment, "models", "check", "mine", *at).stdout


@pytest.mark.long
def test_a_version_without_a_graph_is_run_by_it_and_the_log_says_how_to_make_one(
    launch_server: LaunchServer,
    model_repository_path: Path,
    sample: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(model_repository_path, repository)
    folder = repository / "sface" / "1"
    (folder / "graph.onnx").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["graph.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))

    with launch_server(repository=repository) as server, Client(server.address) as client:
        assert client.embed(sample("person_a_1")).faces
        assert "libtorch" in libraries(server.process.pid)
        log = server.log.read_text()
    assert "sface/1 has no graph.onnx, without which OpenVINO cannot run it" in log
    assert (
        "`mien-server models check sface --make-golden` makes one. pytorch runs it instead" in log
    )
