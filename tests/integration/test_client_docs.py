"""Every example of docs/sdk.md, run as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sdk.md"
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


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
