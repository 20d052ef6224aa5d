"""`mien-server evaluate verification` writes: thresholds into config.pbtxt, and the ROC as a picture."""

import asyncio
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mien_server.commands.main import main
from mien_server.evaluation.loaded import load_models
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.pipeline.types import Call, EncodedImage, FacePolicy, FaceSelection, ModelRef
from mien_server.settings import Settings
from tests.integration.repository_rig import lighten

GENUINE, IMPOSTOR = 2, 13
"""Pairs among the six portraits."""

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repository(model_repository_path: Path, tmp_path: Path) -> Path:
    """The real models, whose config.pbtxt a test may change."""
    for name in ("sface", "retinaface"):
        shutil.copytree(
            model_repository_path / name, tmp_path / name, ignore=shutil.ignore_patterns(".*")
        )
    return lighten(tmp_path)


@pytest.fixture(scope="module")
def portraits(
    sample: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """The sample portraits, small: quick to decode, and found on the smallest canvas."""
    folder = tmp_path_factory.mktemp("portraits")
    for path in sorted(sample("person_a_1").parent.glob("*.jpg")):
        with Image.open(path) as photo:
            photo.thumbnail((320, 320))
            photo.save(folder / path.name, quality=95)
    return sorted(folder.iterdir())


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "sface" / "config.pbtxt"


@pytest.fixture
def evaluate(
    repository: Path, portraits: list[Path], capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    """Evaluates pairs of the portraits: every one that often, those of one person and those of two."""

    def run(genuine: int, impostor: int, *flags: str) -> tuple[int, str, str]:
        lines = []
        for a, b in itertools.combinations(portraits, 2):
            same = a.stem.startswith("person") and a.stem[:-1] == b.stem[:-1]
            lines += [f"{a.name},{b.name},{same:d}\n"] * (genuine if same else impostor)
        pairs = repository / "pairs.csv"
        pairs.write_text("".join(lines))
        paths = ["--pairs", str(pairs), "--images", str(portraits[0].parent)]
        paths += ["--model-repository", str(repository)]
        status = main(["evaluate", "verification", "--json", *paths, *flags])
        return status, *capsys.readouterr()

    return run


@pytest.mark.long
def test_the_roc_is_a_picture(evaluate: Evaluate, tmp_path: Path) -> None:
    assert evaluate(1, 1, "--roc", str(tmp_path / "roc.png"))[0] == 0
    with Image.open(tmp_path / "roc.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (880, 620))


@pytest.mark.parametrize(
    ("roc", "problem"),
    [("/no/such/folder/roc.png", "there is no folder /no/such/folder"), ("/", "is a folder")],
)
def test_a_roc_that_cannot_be_written_is_refused_before_the_work(
    evaluate: Evaluate, roc: str, problem: str
) -> None:
    status, report, said = evaluate(1, 1, "--roc", roc)
    assert (status, report) == (1, "")
    assert said.startswith(f"mien-server: --roc {roc} ")
    assert problem in said


def test_a_calibrated_threshold_is_what_verify_then_uses(
    evaluate: Evaluate, repository: Path, config: Path, portraits: list[Path]
) -> None:
    before = config.read_text()
    status, report, said = evaluate(1, 3, "--calibrate", "0.1")
    assert status == 0
    assert config.read_text() == before, "the model's own threshold is the other versions' still"
    written = repository / "sface" / "1" / "thresholds.json"
    assert f"sface version 1 is calibrated: {written}" in said
    measured = json.loads(written.read_text())
    assert (measured["rule"], measured["data"]) == ("FAR 0.1", "pairs.csv")
    assert (measured["genuine"], measured["impostor"]) == (GENUINE, 3 * IMPOSTOR)
    wanted = json.loads(report)["tar_at_far"][0]["threshold"]

    async def verify() -> float:
        settings = Settings(model_repository=(repository,))
        refs: dict[AnyRole, ModelRef] = {
            DETECTOR: ModelRef("retinaface"),
            EMBEDDER: ModelRef("sface"),
        }
        with load_models(settings, refs) as running:
            ((far, threshold),) = running.models[EMBEDDER].config.options.thresholds_by_far
            assert [far, threshold] == pytest.approx([0.1, wanted], abs=1e-4)
            photo = EncodedImage(portraits[0].read_bytes())
            answer = await running.pipeline.verify(
                photo,
                photo,
                detector=refs[DETECTOR],
                embedder=refs[EMBEDDER],
                selection=FaceSelection(FacePolicy.LARGEST),
                threshold=None,
                call=Call(),
            )
            assert not answer.threshold_from_request
            return answer.threshold

    assert asyncio.run(verify()) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.long
def test_the_threshold_with_the_most_pairs_right_comes_from_300_pairs_of_each_kind(
    evaluate: Evaluate, repository: Path
) -> None:
    status, text, _ = evaluate(150, 24, "--calibrate")
    report: Any = json.loads(text)
    assert (status, report["pairs"]["genuine"], report["pairs"]["impostor"]) == (0, 300, 312)
    measured = json.loads((repository / "sface" / "1" / "thresholds.json").read_text())
    assert measured["match_threshold"] == pytest.approx(report["best"]["threshold"], abs=1e-4)
    assert measured["rule"] == "most pairs right"


@pytest.mark.parametrize(
    ("genuine", "impostor", "flag", "problem"),
    [
        pytest.param(
            *(149, 24, [], "needs 300 pairs of one person and as many of two, not 298 and 312"),
            marks=pytest.mark.long,
        ),
        (150, 23, [], "needs 300 pairs of one person and as many of two, not 300 and 299"),
        pytest.param(
            *(1, 4, ["1e-4"], "FAR 0.0001 needs 30,000 pairs of two people, not 52"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_too_few_pairs_calibrate_nothing_and_are_reported(
    evaluate: Evaluate,
    repository: Path,
    genuine: int,
    impostor: int,
    flag: list[str],
    problem: str,
) -> None:
    status, report, said = evaluate(genuine, impostor, "--calibrate", *flag)
    assert status == 1
    assert "not calibrated: " in said
    assert problem in said
    assert json.loads(report)["pairs"]["genuine"] == GENUINE * genuine
    assert not (repository / "sface" / "1" / "thresholds.json").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--calibrate", "2"], "argument --calibrate: '2' must be a rate between 0 and 1"),
        (
            ["--embedder", "sface:x"],
            "argument --embedder: 'sface:x' must be a model's name, or NAME:N",
        ),
    ],
)
def test_a_flag_that_cannot_hold_is_a_wrong_command_line(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate(1, 1, *flags)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
