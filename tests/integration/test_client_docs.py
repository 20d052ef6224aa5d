"""Every example of docs/sdk.md, run as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "sdk.md"
EXAMPLES = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_has_examples_of_both_kinds() -> None:
    assert {language for language, _ in EXAMPLES} == {"python", "sh"}


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_example(
    language: str, code: str, portraits: list[Path], server_address: str, tmp_path: Path
) -> None:
    for portrait in portraits:
        shutil.copy(portrait, tmp_path)
    interpreter = [sys.executable, "-c"] if language == "python" else ["sh", "-euc"]
    scripts = str(Path(sys.executable).parent)
    done = subprocess.run(
        [*interpreter, code],
        cwd=tmp_path,
        env=os.environ
        | {"MIEN_ADDRESS": server_address, "PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.long
def test_the_first_line_installs_from_a_checkout(tmp_path: Path, server_address: str) -> None:
    """As a new user: in an environment of one's own, outside of which nothing of mien is seen."""
    line = re.search(r"^\$ (pip install \S+)", PAGE.read_text(), re.MULTILINE)
    assert line is not None
    assert PAGE.read_text().index(line[1]) < PAGE.read_text().index("```python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-euc", line[1]],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=170,
        capture_output=True,
    )
    done = subprocess.run(
        ["mien", "doctor", "--address", server_address],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SERVING" in done.stdout
