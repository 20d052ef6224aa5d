"""Models are replaced under load, with real weights: no call fails, and memory is given back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.repository_rig import copy_repository, with_warm_ups

ROOT = Path(__file__).resolve().parents[2]


def reload_under_load(repository: Path, portraits: list[Path], reloads: int) -> Any:
    """Replaces the model so many times while callers call, in a process of its own; what they saw."""
    hammer = [sys.executable, "-m", "tests.integration.reload_hammer"]
    done = subprocess.run(
        [*hammer, str(reloads), repository, *portraits],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["strangers"] == [], "every answer is of a version that was ready at the beginning"
    assert report["answers"] >= reloads
    assert len(report["served"]) >= 2, "new weights have served"
    each = reloads // 5
    assert report["loads"] == {
        "good": [each, 0],
        "slow": [each, 0],
        "broken": [0, each],
        "corrupted": [0, each],
        "half_copied": [0, each],
    }
    return report


@pytest.fixture
def repository(tmp_path: Path, model_repository_path: Path) -> Path:
    return with_warm_ups(copy_repository(model_repository_path, tmp_path / "repository"))


@pytest.mark.long
def test_reloads_under_load_fail_no_call(repository: Path, portraits: list[Path]) -> None:
    reload_under_load(repository, portraits, 5)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_fifty_reloads_under_load_fail_no_call_and_leak_no_memory(
    repository: Path, portraits: list[Path]
) -> None:
    report = reload_under_load(repository, portraits, 50)
    assert report["resident"]["50"] < 1.05 * report["resident"]["5"], report["resident"]
