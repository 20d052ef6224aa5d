"""What may be said on the command line of `mien-server tune`."""

import argparse
from pathlib import Path
from typing import get_args

import pytest

from mien_server.commands.main import main
from mien_server.commands.tune import milliseconds
from mien_server.tuning import Setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100ms", 100.0), ("0.5s", 500.0), ("1.5 s", 1500.0), (".25s", 250.0), (" 2ms ", 2.0)],
)
def test_a_duration_has_a_unit(text: str, expected: float) -> None:
    assert milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["100", "ms", "-5ms", "0ms", "1m", "1e3ms", "nan s", "infs", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="100ms"):
        milliseconds(text)


@pytest.mark.parametrize(
    "flags",
    [
        ["--slo-p99", "100"],
        ["--slo-p99", "1s", "--minutes", "0"],
        ["--slo-p99", "1s", "--minutes", "nan"],
        ["--slo-p99", "1s", "--keep", "everything"],
        [],
    ],
)
def test_a_command_line_that_cannot_hold_ends_with_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "sface", *flags])
    assert ended.value.code == 2


@pytest.mark.parametrize("setting", get_args(Setting))
def test_the_settings_that_can_be_kept_are_those_that_candidates_change(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--slo-p99", "1s", "--keep", setting, "--model-repository", str(tmp_path / "none")]
    assert main(["tune", "sface", *flags]) == 1
    assert "none" in capsys.readouterr().err
