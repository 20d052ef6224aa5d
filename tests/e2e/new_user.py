"""Somebody with a wheel, some photos and a terminal, outside the checkout and in an empty environment."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tools.local_server import free_port


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
        """Runs a command of the shell and returns what it prints."""
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def runs(self, code: str) -> str:
        """Runs a program in Python and returns what it prints, which is nothing on standard error."""
        program = self.folder / "program.py"
        program.write_text(code)
        done = subprocess.run(
            [self.python, program.name],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def keeps_running(self, line: str) -> Iterator[None]:
        """Runs the server for the length of a block, once it says that it is ready; SIGTERM ends it."""
        log = self.folder / "server.log"
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                ["sh", "-c", f"exec {line}"],
                cwd=self.folder,
                env=self.environment,
                stdout=sink,
                stderr=sink,
            ) as server,
        ):
            try:
                ready = re.compile(r": ready address=|\"message\": \"ready\"")
                while not ready.search(log.read_text()):
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.2)
                yield
            finally:
                server.terminate()
                status = server.wait(60)
        assert status == 0, log.read_text()

    def elsewhere(self, folder: Path, **variables: str) -> "User":
        """The same person in another folder, with a port of its own and other variables."""
        folder.mkdir()
        port = str(free_port())
        ports = {"MIEN_GRPC_PORT": port, "MIEN_ADDRESS": f"localhost:{port}"}
        return replace(self, folder=folder, environment={**self.environment, **ports, **variables})

    def with_pytorch(self, folder: Path) -> "User":
        """The same person with PyTorch, lent by the environment of the tests: it is that of the CPUs."""
        if not folder.exists():
            folder.mkdir()
            for name in _needed("torch"):
                for top in {file.parts[0] for file in distribution(name).files or ()}:
                    path = Path(str(distribution(name).locate_file(top)))
                    if top not in ("..", "__pycache__") and path.exists():
                        (folder / top).symlink_to(path)
        return replace(self, environment={**self.environment, "PYTHONPATH": str(folder)})


def _needed(name: str) -> set[str]:
    """A package that is installed and those that it needs, but for what mien brings itself."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name in found or name in ("numpy", "setuptools"):
            continue
        found.add(name)
        needed = map(Requirement, requires)
        waiting += [each.name for each in needed if not each.marker or each.marker.evaluate()]
    return found
