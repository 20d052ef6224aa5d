"""Every example of docs/triton.md, run as it stands but for the address, in the order of the page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mien_server.rpc.calls import UNCOUNTED
from tools.local_server import LocalServer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "triton.md").read_text()
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RUN = [(language, code) for language, code in EXAMPLES if language != "text"]


def test_the_page_has_examples_of_both_kinds() -> None:
    assert {language for language, _ in RUN} == {"python", "sh"}


@pytest.mark.long
@pytest.mark.parametrize(("language", "code"), RUN)
def test_example(
    language: str, code: str, portraits: list[Path], explicit: LocalServer, tmp_path: Path
) -> None:
    for portrait in portraits:
        shutil.copy(portrait, tmp_path)
    interpreter = [sys.executable, "-c"] if language == "python" else ["sh", "-euc"]
    scripts = str(Path(sys.executable).parent)
    environment = {"MIEN_ADDRESS": explicit.address, "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*interpreter, code.replace("localhost:8001", explicit.address)],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "(4, 128)\n42\n" in done.stdout or 'request_id="42"' not in code


def test_the_page_names_every_method_that_answers_at_any_time() -> None:
    (row,) = [line for line in PAGE.splitlines() if "| at any time" in line]
    assert {name.rpartition("/")[2] for name in UNCOUNTED} == set(
        row.split("|")[1].strip().split(", ")
    )
