"""What README says, as a new user types it: outside the checkout, from the wheel, in an empty environment.

Without PyTorch, which nothing of it may need. Sizes are those of the very same environment.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import installed_size
from tools.local_server import free_port

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
LINES = re.findall(r"## Install\n.*?```sh\n(.*?)```", README, re.DOTALL)[0].splitlines()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class User:
    """Somebody with a wheel, some photos and a terminal.

    Attributes:
        folder: where the commands run.
        environment: their variables; the empty environment comes first on the path.
        python: its interpreter.
        installed: MiB in all, and beyond numpy and gRPC, by what was installed.
    """

    folder: Path
    environment: Mapping[str, str]
    python: Path
    installed: dict[str, tuple[float, float]]

    def types(self, line: str, *, fails: bool = False) -> str:
        """Runs a command and returns what it prints."""
        done = subprocess.run(
            shlex.split(line, comments=True),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def keeps_running(self, line: str) -> Iterator[None]:
        """Runs the server for the length of a block, once it is healthy; SIGTERM ends it."""
        log = self.folder / "server.log"
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                shlex.split(line, comments=True),
                cwd=self.folder,
                env=self.environment,
                stdout=sink,
                stderr=sink,
            ) as server,
        ):
            try:
                for _ in range(200):
                    health = [str(self.python.with_name("mien-server")), "health"]
                    if not subprocess.run(health, env=self.environment, check=False).returncode:
                        break
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.3)
                yield
            finally:
                server.terminate()
                status = server.wait(60)
        assert status == 0, log.read_text()


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """Installed are the SDK first and then, by README's line, the server."""
    folder = tmp_path_factory.mktemp("user")
    wheel = installed_size.build_wheel(folder)
    python = installed_size.make_environment(folder / "environment")
    shutil.copytree(ROOT / "samples", folder / "samples", ignore=shutil.ignore_patterns("*.py"))
    port = str(free_port())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MIEN_", "PYTHON", "VIRTUAL"))}
    environment = kept | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        # A user has the ports for himself, and takes whatever version is the newest.
        "MIEN_GRPC_PORT": port,
        "MIEN_METRICS_PORT": "0",
        "MIEN_ADDRESS": f"localhost:{port}",
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
    }
    user = User(folder, environment, python, {})
    empty = installed_size.sizes(python)
    for line, extras in ((f"pip install ./{wheel.name}", "mien"), (LINES[0], "mien[server]")):
        user.types(line)
        now = installed_size.mebibytes(empty, installed_size.sizes(python))
        user.installed[extras] = now
    return user


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
