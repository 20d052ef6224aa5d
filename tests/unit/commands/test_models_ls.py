"""`mien-server models ls`: what a folder holds, without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mien_server.commands.main import main
from tests import graphs
from tests.small_models import PIXELS, add_model
from tests.unit.repository.folders import seal

Ls = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An embedder of two versions, a model without weights, and one whose file was changed."""
    root = tmp_path / "models"
    for name in ("colours", "damaged"):
        add_model(root, name, graphs.embedder(), "embedder", PIXELS, dimensions=8)
    second = root / "colours" / "2"
    second.mkdir()
    (second / "model.onnx").write_bytes((root / "colours" / "1" / "model.onnx").read_bytes())
    seal(second)
    with (root / "colours" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "match_threshold" value { string_value: "0.5" } }\n')
    (root / "empty").mkdir()
    text = (root / "colours" / "config.pbtxt").read_text()
    (root / "empty" / "config.pbtxt").write_text(text.replace('"colours"', '"empty"'))
    with (root / "damaged" / "1" / "model.onnx").open("ab") as file:
        file.write(b"more")
    (root / "unreadable").mkdir()
    (root / "unreadable" / "config.pbtxt").write_text("nonsense")
    return root


@pytest.fixture
def ls(root: Path, capsys: pytest.CaptureFixture[str]) -> Ls:
    def run(*flags: str) -> str:
        assert main(["models", "ls", "--model-repository", str(root), *flags]) == 0
        return capsys.readouterr().out

    return run


def test_every_version_has_a_line_and_a_reason_where_it_cannot_serve(ls: Ls) -> None:
    header, *lines = ls().splitlines()
    assert header.split() == [
        *("model", "version", "state", "architecture", "fingerprint", "MB", "threshold", "licence")
    ]
    table, reasons = lines[:5], lines[5:]
    assert [line.split()[:2] for line in table] == [
        ["colours", "1"],
        ["colours", "2"],
        ["damaged", "1"],
        ["empty", "-"],
        ["unreadable", "-"],
    ]
    assert "not asked for" in table[0]
    assert "whole" in table[1]
    assert table[1].endswith(" 0.5")
    assert "no weights" in table[3]
    assert [line.split(":")[0].strip() for line in reasons] == ["damaged 1", "unreadable"]
    assert "its manifest says" in reasons[0]
    assert "config.pbtxt:1" in reasons[1]


def test_the_same_for_machines(ls: Ls) -> None:
    models = json.loads(ls("--json"))["models"]
    assert [(m["model"], m["version"], m["state"]) for m in models] == [
        ("colours", 1, "not asked for"),
        ("colours", 2, "whole"),
        ("damaged", 1, "unusable"),
        ("empty", 0, "no weights"),
        ("unreadable", 0, "unusable"),
    ]
    assert len(models[1]["fingerprint"]) == 16
    assert models[0]["fingerprint"] == models[1]["fingerprint"], "the weights are the same"
    assert (models[1]["match_threshold"], models[1]["license"]) == (0.5, "")


def test_a_folder_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "ls", "--model-repository", str(tmp_path / "no")]) == 1
    assert "does not exist" in capsys.readouterr().err
