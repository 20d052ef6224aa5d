"""Every example in Python of the pages for users passes `mypy --strict`, of both clients."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_examples_of_the_pages_are_typed(tmp_path: Path) -> None:
    code = [
        example
        for page in ("README.md", "docs/sdk.md")
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
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *files],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
