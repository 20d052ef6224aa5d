"""A server on the processor does without PyTorch, which takes seconds and hundreds of megabytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mien import Client
from tests.conftest import LaunchServer
from tools.local_server import LocalServer


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
