"""What tests share: the sample portraits, a repository with real weights, and a real server."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tools.local_server import PROGRAM, LocalServer, local_server

ROOT = Path(__file__).resolve().parent.parent
LOG = pytest.StashKey[Path]()
LaunchServer = Callable[..., AbstractContextManager[LocalServer]]


def pytest_configure() -> None:
    """Ctrl-C can be tried whoever runs the tests: what a shell starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Path]:
    """The path of a sample portrait by its name, with or without ".jpg"."""

    def find(name: str) -> Path:
        path = ROOT / "samples" / (name if name.endswith(".jpg") else f"{name}.jpg")
        assert path.is_file(), path
        return path

    return find


@pytest.fixture(scope="session")
def portraits() -> list[Path]:
    """All six sample portraits, by name."""
    return sorted((ROOT / "samples").glob("*.jpg"))


@pytest.fixture(scope="session")
def model_repository_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the shipped configurations and their real weights installed."""
    repository = tmp_path_factory.mktemp("model_repository")
    for config in (ROOT / "model_repository").glob("*/config.pbtxt"):
        folder = repository / config.parent.name
        folder.mkdir()
        shutil.copy(config, folder)
    done = subprocess.run(
        [PROGRAM, "models", "install", "--model-repository", repository],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"models install failed:\n{done.stdout}\n{done.stderr}"
    return repository


@pytest.fixture(scope="session")
def launch_server(
    model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> LaunchServer:
    """Starts a server for the length of `with launch_server("--flag", ...) as server`.

    It leaves by SIGTERM at the end of the block and must exit with 0.
    """

    def launch(*flags: str) -> AbstractContextManager[LocalServer]:
        log = tmp_path_factory.mktemp("server") / "server.log"
        return local_server(
            log,
            flags=["--model-repository", str(model_repository_path), *flags],
            environment={k: v for k, v in os.environ.items() if not k.startswith("MIEN_")},
        )

    return launch


@pytest.fixture(scope="session")
def server(launch_server: LaunchServer, pytestconfig: pytest.Config) -> Iterator[LocalServer]:
    """The server that most tests share, with default settings."""
    with launch_server() as running:
        pytestconfig.stash[LOG] = running.log
        yield running


@pytest.fixture(scope="session")
def server_address(server: LocalServer) -> str:
    """The address of the shared server, host:port."""
    return server.address


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the shared server's log to the report of a test that failed while using it."""
    report = yield
    uses_server = isinstance(item, pytest.Function) and "server" in item.fixturenames
    if report.failed and uses_server and LOG in item.config.stash:
        lines = item.config.stash[LOG].read_text(errors="replace").splitlines()
        report.sections.append(("log of mien-server", "\n".join(lines[-100:])))
    return report
