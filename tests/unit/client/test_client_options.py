"""The options of the command `mien`: what they take, and what is said of what they do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".WEBP", ".bmp", ".tif", ".tiff"])
def test_out_draws_a_picture(run: Run, photo: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    status, output, _ = run("detect", photo, "--out", out)
    assert status == 0
    assert output.endswith(f"picture   {out}\n")
    with Image.open(out) as picture:
        assert picture.size == (100, 100)
        assert picture.convert("L").getextrema() != (128, 128)


@pytest.mark.parametrize(
    "name", ["out", "out.txt", "out.blp", "out.h5", "out.xbm", "out.gif", "png"]
)
def test_out_of_another_kind_is_a_wrong_command_line_that_names_the_kinds(
    run: Run, peer: Any, photo: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    status, _, errors = run("detect", photo, "--out", name)
    assert status == 2
    kinds = ".bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    assert errors.endswith(f"argument --out: {name!r} ends in none of {kinds}\n")
    assert peer.received == []


def test_a_picture_that_its_kind_cannot_hold_is_a_failure(run: Run, tmp_path: Path) -> None:
    wide, out = tmp_path / "wide.png", tmp_path / "out.webp"
    Image.new("RGB", (16384, 100)).save(wide)
    status, output, errors = run("detect", wide, "--out", out)
    assert (status, output) == (1, "")
    assert errors.startswith(f"mien: {out}: ")
    assert "16383 pixels" in errors


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf", "1e10", ""])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["detect", "a.jpg"], "--timeout"),
        (["models", "ls"], "--timeout"),
        (["models", "watch"], "--interval"),
    ],
)
def test_what_is_no_number_of_seconds_is_said_so(
    run: Run, command: list[str], option: str, text: str
) -> None:
    status, _, errors = run(*command, f"{option}={text}")
    assert status == 2
    said = f"argument {option}: {text!r} is no number of seconds above 0, up to 31536000\n"
    assert errors.endswith(said)


@pytest.mark.parametrize("text", ["x", "0", "-1", "1.5"])
def test_what_is_no_count_is_said_so(run: Run, text: str) -> None:
    status, _, errors = run("models", "watch", f"--count={text}")
    assert status == 2
    assert errors.endswith(f"argument --count: {text!r} is no whole number from 1 on\n")


@pytest.mark.parametrize("name", ["", ":1", "retinaface:new"])
def test_what_names_no_model_is_a_failure_without_a_call(
    run: Run, peer: Any, photo: Path, name: str
) -> None:
    status, output, errors = run("detect", photo, f"--detector={name}")
    assert (status, output) == (1, "")
    assert errors.startswith(f"mien: {name!r} names no model")
    assert peer.received == []


def test_an_empty_path_is_said_to_be_empty(run: Run) -> None:
    assert run("detect", "") == (1, "", "mien: the path is empty [FILE_ERROR, image]\n")
