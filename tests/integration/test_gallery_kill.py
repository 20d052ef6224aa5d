"""What was acknowledged survives SIGKILL at any moment, and a full disk refuses and harms nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.long


def run(*command: str | Path) -> list[int]:
    """The numbers that a program prints."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_writers_killed_a_hundred_times_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """No face is lost, none there twice or by half."""
    writers = (sys.executable, "-m", "tests.integration.gallery_writers")
    faces, kept, gone = run(*writers, tmp_path / "g", "100", "1")
    assert min(faces, kept, gone) > 0


def test_full_disk_refuses_changes_and_answers_searches(tmp_path: Path) -> None:
    own = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    if not shutil.which("unshare") or subprocess.run((*own, "true"), check=False).returncode:
        pytest.skip("a small file system of the test's own cannot be mounted here")
    (faces,) = run(*own, sys.executable, "-m", "tests.integration.gallery_full_disk", tmp_path)
    assert faces > 100
