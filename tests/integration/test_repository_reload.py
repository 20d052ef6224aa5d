"""Models are replaced under load, with real weights: no call fails, and memory is given back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.repository_rig import copy_repository

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(400)
def test_fifty_reloads_under_load_fail_no_call_and_leak_no_memory(
    tmp_path: Path, model_repository_path: Path, portraits: list[Path]
) -> None:
    repository = copy_repository(model_repository_path, tmp_path / "repository")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.reload_hammer", repository, *portraits],
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
    assert report["answers"] >= 50
    assert len(report["served"]) >= 2, "new weights have served"
    assert report["loads"] == {
        "good": [10, 0],
        "slow": [10, 0],
        "broken": [0, 10],
        "corrupted": [0, 10],
        "half_copied": [0, 10],
    }
    assert report["resident"]["50"] < 1.05 * report["resident"]["5"], report["resident"]
