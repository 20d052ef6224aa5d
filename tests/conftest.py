"""What tests share: the sample portraits, a repository with real weights, and a real server."""

import ctypes
import gc
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from filelock import FileLock

from tools.local_server import PROGRAM, LocalServer, local_server

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ("retinaface", "sface")
"""The models that `models install` installs by itself."""
LOG = pytest.StashKey[Path]()
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
# torch's threads would else wait for each other by spinning, and tests share the processor's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import it without the server, too

LaunchServer = Callable[..., AbstractContextManager[LocalServer]]


def pytest_configure() -> None:
    """Ctrl-C can be tried whoever runs the tests: what a shell starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Has glibc use freed memory again instead of giving it back, page by page, to the system.

    Tests make and drop weights of tens of megabytes many times over: most of what they cost was page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def pytest_collection_finish() -> None:
    """Takes what has been imported and collected out of garbage collection, as the server does it.

    The server collects garbage after every model that it loads; here, too, that is not to take long.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_is_nobodys() -> Iterator[None]:
    """Takes out what commands that ran in this process have set up of logging, in tests or in fixtures."""
    _leave_log()
    level = logging.root.level
    yield
    _leave_log()
    logging.root.setLevel(level)


def _leave_log() -> None:
    for handler in logging.root.handlers[:]:
        if type(handler).__module__.startswith("mien_server."):
            logging.root.removeHandler(handler)


@pytest.fixture
def quickly_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`models check` runs each size of a batch three times, and not for half a second."""
    from mien_server.evaluation import check  # which only these tests need

    monkeypatch.setattr(check, "_SECONDS", 0.0)


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
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def model_repository_path(shared_folder: Path) -> Path:
    """A model repository with the shipped configurations and their real weights; nobody writes to it.

    The models that are installed have no warm-ups, which every load of them would take time for.
    """
    repository = shared_folder / "model_repository"
    with FileLock(shared_folder / "model_repository.lock"):
        if not repository.exists():
            installed = install_models(shared_folder / "installing")
            for model in INSTALLED:
                config = installed / model / "config.pbtxt"
                config.write_text(without_warm_ups(config.read_text()))
            installed.rename(repository)
    return repository


def without_warm_ups(text: str) -> str:
    """A configuration without its warm-ups, which are the last thing in those that are shipped."""
    return text.partition("model_warmup")[0]


def install_models(repository: Path) -> Path:
    """The shipped configurations in a folder of their own, and `models install` run on it."""
    for config in (ROOT / "model_repository").glob("*/config.pbtxt"):
        folder = repository / config.parent.name
        folder.mkdir(parents=True)
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

    def launch(
        *flags: str, repository: Path = model_repository_path, trusted: bytes | None = None
    ) -> AbstractContextManager[LocalServer]:
        log = tmp_path_factory.mktemp("server") / "server.log"
        return local_server(
            log,
            flags=["--model-repository", str(repository), *flags],
            trusted=trusted,
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
