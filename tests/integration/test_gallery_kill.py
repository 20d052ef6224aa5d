"""What was acknowledged survives SIGKILL at any moment: no face is lost, none there twice or by half."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.long
def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.gallery_writers", tmp_path / "g", "8", "1"],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds, faces, kept, gone = map(int, done.stdout.split())
    assert rounds >= 3
    assert min(faces, kept, gone) > 0
