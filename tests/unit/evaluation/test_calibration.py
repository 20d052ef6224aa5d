"""Thresholds are written into the folder of the version that they were measured with, and nowhere else."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from mien_server.evaluation.calibration import calibrate, check_writable
from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.metrics import Operation
from mien_server.repository.thresholds import Thresholds, read_thresholds
from mien_server.repository.versions import ReadyModel

TABLE = [Operation(0.1, 30, 0.25, 0.9), Operation(0.01, 300, 0.412345, 0.8), Operation(0.001, 3000)]
MODEL = ReadyModel("sface", 2, "0123456789abcdef", cast(Any, None), cast(Any, None))


def written(folder: Path, threshold: float = 0.37501) -> Thresholds:
    counts: dict[str, Any] = {
        "rule": "FAR 0.001",
        "data": "lfw.bin",
        "genuine": 9,
        "impostor": 4000,
    }
    calibrate(folder, MODEL, threshold, TABLE, **counts)
    found = read_thresholds(folder, folder, MODEL.fingerprint)
    assert found is not None
    return found


def test_the_file_says_what_was_measured_with_what_on_what_and_when(tmp_path: Path) -> None:
    found = written(tmp_path)
    assert found.match_threshold == 0.3751
    assert found.thresholds_by_far == ((0.1, 0.25), (0.01, 0.4124))
    assert (found.version, found.fingerprint) == (2, "0123456789abcdef")
    assert abs((datetime.now(UTC) - found.created).total_seconds()) < 60
    assert found.provenance == (
        f"calibrated on {found.created:%Y-%m-%d} with version 2 on 9 + 4,000 pairs of lfw.bin: FAR 0.001"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thresholds.json"]
    assert json.loads((tmp_path / "thresholds.json").read_text())["match_threshold"] == 0.3751


def test_calibrating_again_replaces_it(tmp_path: Path) -> None:
    written(tmp_path)
    assert written(tmp_path, 0.5).match_threshold == 0.5


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.1, 0.1), (0.10001, 0.1001), (-0.10001, -0.1), (0.36300000000001, 0.363)],
)
def test_thresholds_are_rounded_up_so_that_they_keep_the_rate(
    tmp_path: Path, threshold: float, expected: float
) -> None:
    assert written(tmp_path, threshold).match_threshold == expected


def test_a_folder_that_may_not_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"thresholds\.json cannot be written"):
        check_writable(tmp_path / "gone")
    with pytest.raises(EvaluationError, match=r"thresholds\.json cannot be written"):
        written(tmp_path / "gone")
