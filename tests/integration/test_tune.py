"""`mien-server tune` on small models: what it writes, that it serves, and how it ends."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mien_server.commands.main import main
from mien_server.evaluation.loaded import load_models
from mien_server.models.interface import AnyRole
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.types import ModelRef
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.scheduling.interface import Work
from mien_server.settings import Settings
from tests import graphs
from tests.integration.test_onnx_scrfd import INPUT, scrfd
from tests.small_models import PIXELS, add_model
from tests.unit.models.scrfd_outputs import SIDE

FILES = {"config.pbtxt", "evidence.json", "evidence.md", "evidence.svg"}

Tune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    config = add_model(root, "colours", graphs.embedder(), "embedder", PIXELS, dimensions=8)
    path = config / "config.pbtxt"
    path.write_text(f"# mine\n{path.read_text()}")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tuned" / "colours"


@pytest.fixture
def tune(repository: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> Tune:
    """Tunes for a few seconds; exit status, output and messages."""

    def run(
        slo: str, *flags: str, name: str = "colours", minutes: float = 0.02
    ) -> tuple[int, str, str]:
        where = ["--model-repository", str(repository), "--out", str(out), "--cpu-cores", "2"]
        status = main(["tune", name, "--slo-p99", slo, "--minutes", str(minutes), *where, *flags])
        return status, *capsys.readouterr()

    return run


@pytest.mark.long
def test_the_best_settings_and_the_evidence_are_written_and_the_model_stays(
    tune: Tune, repository: Path, out: Path
) -> None:
    own = repository / "colours" / "config.pbtxt"
    before = own.read_text()
    status, told, progress = tune("2s")
    assert status == 0, progress
    assert {path.name for path in out.iterdir()} == FILES
    assert own.read_text() == before
    assert "by successive halving" in progress

    evidence = json.loads((out / "evidence.json").read_text())
    best = evidence["best"]
    assert best["meets_objective"]
    assert best["p99_ms"] <= 2000
    assert {each["backend"] for each in evidence["candidates"]} == {"onnxruntime", "openvino"}
    measured = [m for each in evidence["candidates"] for m in each["measurements"]]
    assert best["rate"] > 0
    assert any(m["batch"] > 1 for m in measured), "callers share batches"
    assert evidence["versions"]["onnxruntime"]

    assert "as it is" in told
    assert "meets objective" in (out / "evidence.md").read_text()
    assert ET.parse(out / "evidence.svg").getroot().tag.endswith("svg")  # noqa: S314

    written = read_config(out / "config.pbtxt")
    assert isinstance(written, ModelConfig)
    assert (out / "config.pbtxt").read_text().startswith("# mine\n")
    assert written.batching.preferred_batch_sizes == tuple(best["preferred"] or ())
    assert written.batching.max_queue_delay == pytest.approx(best["delay_ms"] / 1e3)
    assert written.cpu_backend == best["backend"]


@pytest.mark.long
def test_what_is_written_serves(tune: Tune, repository: Path, out: Path) -> None:
    assert tune("2s", "--apply")[0] == 0
    own = repository / "colours" / "config.pbtxt"
    assert own.read_text() == (out / "config.pbtxt").read_text()
    wanted: dict[AnyRole, ModelRef] = {EMBEDDER: ModelRef("colours")}
    with load_models(Settings(model_repository=(repository,)), wanted) as running:
        model = running.models[EMBEDDER]
        row = model.config.role.row(np.zeros((112, 112, 3), np.uint8), model.config.options)
        done = model.slot.submit(Work(rows=[row], shape=112)).result(30)
    assert done.results[0].shape == (8,)


@pytest.mark.long
def test_an_objective_that_nothing_meets_names_the_closest_and_ends_with_1(
    tune: Tune, repository: Path, out: Path
) -> None:
    before = (repository / "colours" / "config.pbtxt").read_text()
    out.mkdir(parents=True)
    (out / "config.pbtxt").write_text("of an earlier run")
    status, told, _ = tune("0.001ms", "--apply")
    assert status == 1
    assert "nothing meets p99 within 0.001 ms; the closest is" in told
    assert {path.name for path in out.iterdir()} == FILES - {"config.pbtxt"}
    assert (repository / "colours" / "config.pbtxt").read_text() == before


def test_kept_settings_are_not_changed(tune: Tune, repository: Path, out: Path) -> None:
    keep = [f"--keep={name}" for name in ("backend", "precision", "batch", "delay", "count")]
    status, told, _ = tune("2s", *keep)
    assert status == 0
    assert "the settings as they are are the best" in told
    own = repository / "colours" / "config.pbtxt"
    assert (out / "config.pbtxt").read_text() == own.read_text()


@pytest.mark.long
def test_a_detector_is_tuned_on_its_canvas(tune: Tune, repository: Path, out: Path) -> None:
    add_model(repository, "bright", scrfd(batched=True), "scrfd", INPUT, side=SIDE)
    status, _, problem = tune("5s", "--keep=delay", "--side", "123", name="bright")
    assert status == 1
    assert f"bright takes pictures of {SIDE} pixels a side, not 123" in problem
    assert tune("5s", "--keep=delay", name="bright")[0] == 0
    assert json.loads((out / "evidence.json").read_text())["side"] == SIDE


def test_an_unknown_model_is_refused_before_anything_is_written(tune: Tune, out: Path) -> None:
    status, _, problem = tune("2s", name="nobody")
    assert status == 1
    assert "there is no model 'nobody', only colours" in problem
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    tune: Tune, out: Path
) -> None:
    out.parent.mkdir()
    out.write_text("a file")
    status, _, problem = tune("2s")
    assert status == 1
    assert f"{out} cannot be written" in problem
    assert "candidates" not in problem
