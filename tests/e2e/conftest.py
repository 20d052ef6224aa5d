"""What the tests of new users share: one empty environment, which takes a minute to fill."""

import os
import re
import shutil

import pytest

from tests.conftest import ROOT
from tests.e2e.new_user import User
from tools import installed_size
from tools.local_server import free_port

README_INSTALL = re.findall(
    r"## Install\n.*?```sh\n(.*?)\n", (ROOT / "README.md").read_text(), re.DOTALL
)[0]


@pytest.fixture(scope="session")
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
    for line, extras in ((f"pip install ./{wheel.name}", "mien"), (README_INSTALL, "mien[server]")):
        user.types(line)
        now = installed_size.mebibytes(empty, installed_size.sizes(python))
        user.installed[extras] = now
    return user
