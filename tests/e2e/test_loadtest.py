"""`make loadtest` in short: its calls are counted by name, its failures by reason."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_load(address: str, out: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    load = ["--address", address, "--users", "4", "--seconds", str(seconds), "--out", str(out)]
    return subprocess.run(
        [sys.executable, "-m", "loadtest.run", *load],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.long
def test_all_three_calls_are_counted_and_reported(server_address: str, tmp_path: Path) -> None:
    done = run_load(server_address, tmp_path, seconds=6)

    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "loadtest.html").read_text()
    for name in ("Detect", "Embed", "Verify"):
        assert name in report


@pytest.mark.long
def test_failures_are_counted_by_their_reason(tmp_path: Path) -> None:
    done = run_load("127.0.0.1:9", tmp_path, seconds=3)

    assert done.returncode != 0
    assert "SERVER_UNREACHABLE" in done.stdout + done.stderr
