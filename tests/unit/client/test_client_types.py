"""Every example in Python of the pages for users passes `mypy --strict` and pyright, of both clients.

pyright comes as basedpyright, whose wheel has the program in it; pyright's own fetches it from elsewhere.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "docs/sdk.md", "docs/galleries.md")


@pytest.fixture
def examples(tmp_path: Path) -> list[Path]:
    """The examples, each in a file of its own."""
    code = [
        example
        for page in PAGES
        for example in re.findall(
            r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
        )
    ]
    for client in ("mien.Client(", "mien.AsyncClient("):
        assert any(client in example for example in code)
    files = []
    for number, example in enumerate(code):
        files.append(tmp_path / f"example_{number}.py")
        files[-1].write_text(example)
    return files


def check(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_of_the_pages_are_typed(examples: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    kept = ROOT / ".mypy_cache" / "examples"  # what they import is the same in every run
    check(["mypy", "--strict", "--cache-dir", str(kept), *map(str, examples)], tmp_path)


@pytest.mark.long
def test_the_examples_of_the_pages_pass_pyright(examples: list[Path], tmp_path: Path) -> None:
    settings = {
        "typeCheckingMode": "strict",
        "include": [path.name for path in examples],
        "extraPaths": [str(ROOT / "client")],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    check(["basedpyright", "--project", str(tmp_path), "--pythonpath", sys.executable], tmp_path)
