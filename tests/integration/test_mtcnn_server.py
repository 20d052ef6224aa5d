"""MTCNN behind the real server, by its name and as the default, beside the shipped detector."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mien
from mien.cli import main as mien_command
from mien_server.commands.main import main
from tools.local_server import LocalServer, local_server

pytestmark = (
    pytest.mark.long
)  # what MTCNN finds, and that servers serve any detector, unit tests show

MIEN = Path(sys.executable).parent / "mien"
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("MIEN_")}
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def repository(mtcnn_repository_path: Path) -> Path:
    return mtcnn_repository_path


@pytest.fixture(scope="module")
def running(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    flags = ["--model-repository", str(repository), "--default-detector", "mtcnn"]
    with local_server(log, flags=flags, environment=CLEAN) as server:
        yield server


@pytest.fixture(scope="module")
def client(running: LocalServer) -> Iterator[mien.Client]:
    with mien.Client(running.address, timeout=60) as client:
        yield client


@pytest.fixture
def command(running: LocalServer, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `mien` against the server, in this process, and gives its JSON."""

    def run(*arguments: str | Path) -> Any:
        flags = ["--json", "--address", running.address]
        assert mien_command([*map(str, arguments), *flags]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def test_only_those_who_ask_for_it_get_its_weights(
    model_repository_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (model_repository_path / "mtcnn" / "1").exists()
    assert (repository / "mtcnn" / "1" / "model.safetensors").is_file()
    assert main(["models", "install", "mtcnn", "--model-repository", str(repository)]) == 0
    assert "mtcnn version 1 is already installed" in capsys.readouterr().err


def test_the_command_finds_the_same_faces_with_either_detector(
    command: Command, portraits: list[Path]
) -> None:
    for portrait in portraits:
        (ours,) = command("detect", portrait, "--detector", "mtcnn")
        (reference,) = command("detect", portrait, "--detector", "retinaface")
        assert overlap(ours["box"], reference["box"]) >= 0.5
        eyes = [np.array(reference["landmarks"][name]) for name in ("left_eye", "right_eye")]
        distance = np.linalg.norm(eyes[0] - eyes[1])
        for name, eye in zip(("left_eye", "right_eye"), eyes, strict=True):
            assert np.linalg.norm(ours["landmarks"][name] - eye) <= 0.1 * distance, portrait.name


def test_the_command_verifies_with_it(running: LocalServer, portraits: list[Path]) -> None:
    two = [path for path in portraits if path.stem.startswith("person_a")]
    done = subprocess.run(
        [MIEN, "verify", *two, "--detector", "mtcnn", "--json", "--address", running.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=CLEAN,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["matched"] is True
    assert answer["similarity"] >= 0.5


def test_embeddings_behind_it_tell_people_apart_and_name_it(
    client: mien.Client, portraits: list[Path]
) -> None:
    results = [client.embed(path, detector="mtcnn") for path in portraits]
    for result in results:
        assert result.detector is not None
        assert (result.detector.name, result.embedding.model.name) == ("mtcnn", "sface")
    for a, b in combinations(range(len(portraits)), 2):
        names = portraits[a].stem[:-2], portraits[b].stem[:-2]
        cosine = float(results[a].embedding.values @ results[b].embedding.values)
        if names[0] == names[1] != "impostor":
            assert cosine >= 0.5, names
        else:
            assert cosine <= 0.35, names


def test_both_detectors_answer_many_calls_at_once(
    client: mien.Client, portraits: list[Path]
) -> None:
    work = [(path, name) for path in portraits for name in ("mtcnn", "retinaface")] * 2
    alone = {(path, name): client.detect(path, detector=name) for path, name in work[:12]}
    with ThreadPoolExecutor(8) as threads:
        crowd = list(threads.map(lambda job: client.detect(job[0], detector=job[1]), work))
    for job, answer in zip(work, crowd, strict=True):
        assert answer.detector.name == job[1]
        (face,), (expected,) = answer.faces, alone[job].faces
        assert face.box is not None
        assert expected.box is not None
        np.testing.assert_allclose(face.box.as_list(), expected.box.as_list(), atol=0.1)


def test_a_photo_without_faces_is_an_empty_answer(client: mien.Client) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for picture in (noise, np.full((64, 64, 3), 200, np.uint8), np.zeros((1, 1, 3), np.uint8)):
        assert client.detect(picture, detector="mtcnn").faces == ()


def test_it_can_be_the_default(client: mien.Client, portraits: list[Path]) -> None:
    result = client.detect(portraits[0])
    assert result.detector.name == "mtcnn"
    assert len(result.faces) == 1
