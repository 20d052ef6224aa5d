"""docs/sdk.md: how it begins. `tests/e2e/test_new_user.py` runs its examples as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "sdk.md"
EXAMPLES = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_has_examples_of_both_kinds() -> None:
    assert {language for language, _ in EXAMPLES} == {"python", "sh"}


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
