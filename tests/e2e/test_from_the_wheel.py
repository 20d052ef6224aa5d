"""What README says, as a new user types it: outside the checkout, from the wheel, in an empty environment.

Without PyTorch, which nothing of it may need. Sizes are those of the very same environment.
"""

import re
from pathlib import Path

import pytest

from tests.e2e.new_user import User
from tools import installed_size

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
LINES = re.findall(r"## Install\n.*?```sh\n(.*?)```", README, re.DOTALL)[0].splitlines()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_it_is_as_small_as_the_page_says(user: User) -> None:
    for extras, (whole, beyond) in user.installed.items():
        most = installed_size.MOST_MIB[extras]
        assert (beyond if extras == "mien" else whole) <= most
        row = re.search(
            rf"^\| `{re.escape(extras)}` \|.*?\| (\d+) \| (\d+) \|$", OPERATIONS, re.MULTILINE
        )
        assert row is not None
        # Other processors and interpreters have files of somewhat other sizes.
        assert int(row[1]) == pytest.approx(whole, rel=0.15)
        assert int(row[2]) == pytest.approx(beyond, rel=0.15)


def test_neither_pytorch_nor_cuda_came(user: User) -> None:
    names = installed_size.sizes(user.python).keys()
    assert not {name for name in names if re.match(r"torch|nvidia|triton$", name)}
    user.types("python -c 'import torch'", fails=True)


def test_the_lines_of_readme_lead_to_faces(user: User) -> None:
    install, serve, *rest = LINES[1:]
    assert "models install" in install
    assert " serve " in serve
    user.types(install)
    assert (user.folder / "models" / "sface" / "1" / "graph.onnx").is_file()
    with user.keeps_running(serve):
        for line in rest:
            assert "1 face" in user.types(line) or "score" in user.types(line)
        assert user.types("mien doctor")
        assert "READY" in user.types("mien models ls")
        assert PYTHON
        for number, code in enumerate(PYTHON):
            (user.folder / f"example{number}.py").write_text(code)
            user.types(f"python example{number}.py")
    assert "passed" in user.types("mien-server models check sface --model-repository models")
    told = user.types("mien-server models install mtcnn --model-repository models", fails=True)
    assert "pip install 'mien[torch]'" in told
