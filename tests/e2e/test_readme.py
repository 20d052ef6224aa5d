"""README.md tells the truth: its examples run, its links lead somewhere, its targets exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.local_server import PROGRAM

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
SHELL = [
    line.removeprefix("$ ")
    for language, body in BLOCKS
    if language in ("sh", "console")
    for line in body.splitlines()
    if language == "sh" or line.startswith("$ ")
]
MIEN = [line for line in SHELL if line.startswith("mien ")]
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "samples").glob("*.md")]
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that looks like the checkout to an example, and may be written to."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    (tmp_path / "out").mkdir()
    return tmp_path


def test_there_are_examples_of_the_sdk_and_of_the_command_line() -> None:
    assert PYTHON
    assert MIEN


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(server_address: str, project: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=os.environ | {"MIEN_ADDRESS": server_address},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", MIEN)
def test_command_line_examples_run(server_address: str, project: Path, line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    done = subprocess.run(
        [PROGRAM.with_name(program), *arguments],
        cwd=project,
        env=os.environ | {"MIEN_ADDRESS": server_address},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]

    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text())) | {
        line.split()[1] for line in SHELL if line.startswith("make ") and page.name == "README.md"
    }
    makefile = (ROOT / "Makefile").read_text()

    assert not {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)}
