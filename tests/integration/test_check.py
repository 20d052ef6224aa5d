"""A version against its golden file: when it is loaded, and by `mien-server models check`."""

import io
import json
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mien_server.backends.openvino_models import multiplies_bf16
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import GRAPH
from mien_server.commands.main import main
from mien_server.commands.models import PRECISIONS
from mien_server.engine import build_engine
from mien_server.models.families import find_family
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.golden import BOUNDS
from mien_server.repository.golden import FILENAME as GOLDEN
from mien_server.repository.manifest import FILENAME as MANIFEST
from mien_server.repository.manifest import describe, read_manifest, write_manifest
from mien_server.repository.versions import State, VersionStatus
from mien_server.settings import Settings
from mien_server.weights.progress import Progress
from mien_server.weights.write.graph import write_graph
from mien_server.weights.write.version_folder import turn
from tools.local_server import PROGRAM

pytestmark = pytest.mark.usefixtures("quickly_measured")
WEIGHTS = "model.safetensors"


@pytest.fixture
def repository(model_repository_path: Path, tmp_path: Path) -> Path:
    """A copy with real weights that a test may damage; batches of one, of which the speed is soon known."""
    for name in ("sface", "retinaface"):
        folder = tmp_path / name
        shutil.copytree(model_repository_path / name, folder, ignore=shutil.ignore_patterns(".*"))
        config = folder / "config.pbtxt"
        text = re.sub(r"\bpreferred_batch_size: .*", "", config.read_text())
        text, changed = re.subn(r"batch_size: \d+", "batch_size: 1", text)
        assert changed
        config.write_text(text)
    return tmp_path


def _describe_again(folder: Path) -> None:
    """Makes the manifest agree with the files."""
    (folder / MANIFEST).unlink()
    manifest = describe(
        folder, source="a test", license_="none", created=datetime.now(UTC), importer="a test"
    )
    write_manifest(folder, manifest)


def _perturb(folder: Path, tensor: str, share: float) -> None:
    """Adds noise to one tensor, by a share of its spread."""
    path = folder / WEIGHTS
    state = load_file(path)
    noise = torch.randn(state[tensor].shape, generator=torch.Generator().manual_seed(0))
    state[tensor] += share * state[tensor].std() * noise
    save_file(state, path)
    config = read_config(folder.parent / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    write_graph(find_family(config.architecture), path)
    _describe_again(folder)


def _load(repository: Path, name: str) -> VersionStatus:
    engine = build_engine(Settings(model_repository=(repository,), cpu_cores=1))
    try:
        engine.loader.start([name])
        (status,) = [each for each in engine.catalogue.statuses() if each.name == name]
        return status
    finally:
        engine.close()


def _check(capsys: pytest.CaptureFixture[str], repository: Path, *flags: str) -> tuple[int, Any]:
    capsys.readouterr()
    common = ["--json", "--cpu-cores", "1", "--model-repository", str(repository)]
    status = main(["models", "check", *common, *flags])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["sface", "retinaface"])
def test_installing_writes_a_golden_file_that_the_manifest_lists(
    model_repository_path: Path, name: str
) -> None:
    folder = model_repository_path / name / "1"
    entry = read_manifest(folder).files[GOLDEN]
    assert entry.size == (folder / GOLDEN).stat().st_size < 700_000
    assert _load(model_repository_path, name).state is State.READY


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        pytest.param("sface", "blocks.6.pointwise.conv.weight", marks=pytest.mark.long),
        ("sface", "fc.weight"),
        ("retinaface", "fpn.merge1.0.weight"),
        pytest.param("retinaface", "BboxHead.1.conv1x1.weight", marks=pytest.mark.long),
    ],
)
def test_a_version_with_one_perturbed_tensor_is_refused_with_both_figures(
    repository: Path, name: str, tensor: str
) -> None:
    _perturb(repository / name / "1", tensor, share=0.5)
    status = _load(repository, name)
    assert status.state is State.UNAVAILABLE
    assert "its answers have a cosine of 0." in status.reason
    assert "below the bound of 0.99" in status.reason


def test_a_version_whose_golden_file_is_damaged_is_refused(repository: Path) -> None:
    golden = repository / "sface" / "1" / GOLDEN
    data = bytearray(golden.read_bytes())
    data[-1] ^= 1
    golden.write_bytes(data)
    assert "does not match its manifest" in _load(repository, "sface").reason
    golden.write_bytes(b"{}")
    _describe_again(golden.parent)
    assert "is no golden file" in _load(repository, "sface").reason


@pytest.mark.long
def test_a_version_without_golden_file_serves_and_check_says_how_to_make_one(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository / "sface" / "1"
    source = read_manifest(folder).source
    weights = (folder / WEIGHTS).read_bytes()
    (folder / GOLDEN).unlink()
    _describe_again(folder)
    assert _load(repository, "sface").state is State.READY

    status, report = _check(capsys, repository, "sface")
    assert (status, report["passed"], report["cosine"]) == (0, None, None)
    assert "has no golden file: `mien-server models check sface --make-golden`" in report["problem"]

    status, report = _check(capsys, repository, "sface", "--make-golden")
    assert (status, report["passed"], report["problem"]) == (0, True, "")
    manifest = read_manifest(folder)
    assert set(manifest.files) == {WEIGHTS, GRAPH, GOLDEN}
    assert manifest.source == "a test" != source
    assert (folder / WEIGHTS).read_bytes() == weights
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".1")]
    assert _load(repository, "sface").state is State.READY


def test_a_golden_file_stays_if_no_other_can_be_made(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = repository / "retinaface" / "config.pbtxt"
    config.write_text(
        config.read_text().replace('"104, 117, 123"', '"0"').replace('"1"', '"0.001"')
    )
    golden = (repository / "retinaface" / "1" / GOLDEN).read_bytes()
    flags = ["--make-golden", "--model-repository", str(repository)]
    assert main(["models", "check", "retinaface", *flags]) == 1
    assert "no golden file can be made: it is sure of no face" in capsys.readouterr().err
    assert (repository / "retinaface" / "1" / GOLDEN).read_bytes() == golden
    assert read_manifest(repository / "retinaface" / "1").files[GOLDEN].size == len(golden)


def test_a_version_that_is_damaged_before_its_turn_comes_keeps_its_golden_file(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was whole when the command began; then somebody else held the folder, and left it damaged."""
    folder = repository / "sface" / "1"
    golden = (folder / GOLDEN).read_bytes()
    flags = ["--make-golden", "--model-repository", str(repository)]
    said = ""
    with ThreadPoolExecutor(1) as thread:
        with turn(repository / "sface", Progress(io.StringIO())):
            status = thread.submit(main, ["models", "check", "sface", *flags])
            while "waiting for another installation" not in said:
                assert not status.done()
                said += capsys.readouterr().err
                time.sleep(0.01)
            (folder / WEIGHTS).write_bytes(b"half")
        assert status.result(timeout=60) == 1
    assert "has 4 bytes, its manifest says" in capsys.readouterr().err
    assert (folder / GOLDEN).read_bytes() == golden


def test_a_golden_file_for_other_pixels_is_not_used(
    repository: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = repository / "sface" / "config.pbtxt"
    config.write_text(config.read_text().replace('"RGB"', '"BGR"'))
    assert _load(repository, "sface").state is State.READY
    assert "was made for pixels prepared as RGB, mean 127.5" in caplog.text
    _, report = _check(capsys, repository, "sface")
    assert report["cosine"] is None
    assert "is for pixels prepared as RGB" in report["problem"]


@pytest.mark.long
def test_check_reports_cosine_speed_and_memory(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = repository / "sface" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 1", "max_batch_size: 4"))
    # In a process of its own: this one's memory is full of what other tests have left, and may shrink.
    run = (
        f"models check sface --json --cpu-cores 1 --precision bf16 --model-repository {repository}"
    )
    done = subprocess.run(
        [PROGRAM, *run.split()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    precision = "bf16" if multiplies_bf16() else "fp32"  # OpenVINO emulates no bfloat16
    named = {key: report[key] for key in ("model", "version", "device", "cores", "precision")}
    assert named == {
        "model": "sface",
        "version": 1,
        "device": "cpu",
        "cores": 1,
        "precision": precision,
    }
    cosine = report["cosine"]
    assert BOUNDS[precision] <= cosine["min"] <= cosine["median"] <= 1
    assert cosine["bound"] == BOUNDS[precision]
    assert [speed["rows"] for speed in report["speeds"]] == [1, 2, 4]
    for speed in report["speeds"]:
        rate = 1000 * speed["rows"] / speed["milliseconds"]
        assert speed["rows_per_second"] == pytest.approx(rate, rel=0.01, abs=0.05)
    assert report["memory"]["loaded_bytes"] > 5_000_000

    assert main(["models", "check", "retinaface", "--model-repository", str(repository)]) == 0
    table = capsys.readouterr().out
    assert "retinaface version 1, fp32 on cpu, " in table
    assert "cosine to fp32   min 1.000000" in table
    assert "speed with pictures of 320 pixels a side" in table


def test_check_ends_with_1_below_the_bound(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _perturb(repository / "sface" / "1", "fc.weight", share=0.5)
    status, report = _check(capsys, repository, "sface")
    assert (status, report["passed"]) == (1, False)
    assert report["cosine"]["min"] < report["cosine"]["bound"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["arcface"], "there is no model 'arcface', only retinaface, sface"),
        (["sface", "--version", "3"], "sface has no version 3, only [1]"),
        (["sface", "--device", "tpu"], "there is no device 'tpu': give cpu, or cuda:0"),
        (["sface", "--device", "cuda:9"], "there is no cuda:9"),
        (["sface", "--precision", "fp16"], "precision fp16 needs a GPU"),
        (["sface", "--precision", "int8"], "precision int8 needs quantised weights"),
    ],
)
def test_what_cannot_be_checked_says_why(
    repository: Path, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    assert main(["models", "check", "--model-repository", str(repository), *flags]) == 1
    assert problem in capsys.readouterr().err


def test_a_damaged_version_is_not_checked(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "sface" / "1" / WEIGHTS).write_bytes(b"half")
    assert main(["models", "check", "sface", "--model-repository", str(repository)]) == 1
    assert "has 4 bytes, its manifest says" in capsys.readouterr().err


def test_every_precision_can_be_asked_for() -> None:
    assert set(PRECISIONS) == set(Precision.__args__)  # type: ignore[attr-defined]
