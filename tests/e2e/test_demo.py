"""`make demo`, as a newcomer runs it: its verdicts, its pictures, and what it says on a taken port."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from samples import demo

ROOT = Path(__file__).resolve().parents[2]


def run_demo(repository: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samples.demo", "--out", out, *flags],
        cwd=ROOT,
        env=os.environ | {"MIEN_MODEL_REPOSITORY": str(repository)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.mark.long
def test_the_demo_tells_two_pairs_from_thirteen_and_draws_them(
    model_repository_path: Path, tmp_path: Path, portraits: list[Path]
) -> None:
    done = run_demo(model_repository_path, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(verdicts) == 15
    assert sum(line.endswith("same person") for line in verdicts) == 2
    assert sum(line.endswith("different") for line in verdicts) == 13
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"demo.png", *(f"{portrait.stem}.png" for portrait in portraits)}
    for name in drawn:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200


@pytest.mark.long
def test_a_taken_port_that_was_asked_for_is_named_with_the_way_out(
    model_repository_path: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_demo(model_repository_path, tmp_path, "--port", str(port))

    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "make demo PORT=" in done.stderr


@pytest.mark.parametrize("port", ["0", "99999", "x"])
def test_a_port_that_is_none_is_a_wrong_command_line(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--port", port])
    with pytest.raises(SystemExit) as caught:
        demo.main()

    assert caught.value.code == 2
    assert f"argument --port: '{port}' must be a port, 1 to 65535" in capsys.readouterr().err


def test_the_demo_goes_elsewhere_when_the_default_port_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(demo, "DEFAULT_PORT", taken)
        port = demo.choose_port(None)

    assert port != taken
    assert f"port {taken} is taken; using {port}" in capsys.readouterr().out
