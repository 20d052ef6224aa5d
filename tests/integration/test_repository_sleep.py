"""Models fall asleep under random traffic, with real weights: no call fails, and memory is given back."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.integration.repository_rig import copy_repository, lighten
from tests.integration.sleep_hammer import IDLE
from tests.unit.repository.folders import parameter

ROOT = Path(__file__).resolve().parents[2]
SLEEPS = 30


@pytest.mark.long
def test_sleeps_under_random_traffic_fail_no_call_and_give_the_memory_back(
    tmp_path: Path, model_repository_path: Path, portraits: list[Path]
) -> None:
    repository = copy_repository(model_repository_path, tmp_path / "repository", ("sface",))
    parameter(lighten(repository), "sface", "idle_unload_secs", IDLE)
    crop = tmp_path / "crop.png"
    photo = np.asarray(cv2.imread(str(portraits[0])), np.uint8)
    cv2.imwrite(str(crop), cv2.resize(photo, (112, 112)))
    hammer = [sys.executable, "-m", "tests.integration.sleep_hammer"]
    done = subprocess.run(
        [*hammer, str(SLEEPS), repository, crop],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["answers"] >= SLEEPS
    assert report["slept"] >= SLEEPS
    assert report["slept"] - report["woken"] == 1, "it sleeps at the end"
    first, last = report["asleep"].values()
    assert last < report["awake"] - 40, report
    assert last < 1.02 * first, report
