"""A real Milvus on loopback, for tests and benchmarks, from the wheel `milvus==2.3.5`.

    python -m tools.milvus FOLDER     # puts it and pymilvus into FOLDER, beside the project and not into it
    MILVUS_SITE=FOLDER make test-long ARGS="-k milvus"

The wheel is old, and nothing to serve from. Its server leaves a child behind when it is told to end, so it
has a process group of its own, which ends as a whole.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import trustme

VARIABLE = "MILVUS_SITE"
"""Names the folder that the packages are in."""

ROOT = "root:Milvus"
"""The user that a new Milvus has, with the password."""

_PACKAGES = (
    *("milvus==2.3.5", "pymilvus==3.0.2"),
    # What pymilvus needs beside what the project has.
    *("cachetools", "orjson", "pandas", "python-dateutil", "pytz", "six"),
)

_RUN = """
import json, socket, sys
from milvus import MilvusServer, MilvusServerConfig
class Reusing(socket.socket):  # after a restart, connections to the last one still linger on its port
    def bind(self, address):
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)
socket.socket = Reusing
config = MilvusServerConfig(data_dir=sys.argv[1], proxy_port=int(sys.argv[2]))
for name, value in json.loads(sys.argv[3]).items():
    config.set(name, value)
server = MilvusServer(config, wait_for_started=False)
server.start()
print(server.webservice_port, flush=True)
server.server_proc.wait()
"""

_START_SECONDS = 120.0


def site() -> Path | None:
    """The folder with the packages; None: there is none."""
    named = os.environ.get(VARIABLE, "")
    return Path(named) if named and (Path(named) / "pymilvus").is_dir() else None


class Milvus:
    """A Milvus standalone with a folder of its own. One at a time: its etcd has the same port in each.

    Args:
        packages: as `site` gives it.
        folder: keeps its data, over restarts.
        port: of gRPC.
        authority: it shows a certificate of this one, answers over TLS alone, and only users who give their
            password; at first that is `ROOT`. None: it speaks plain text with everybody.
        mutual: clients must show a certificate of that authority, too.

    Attributes:
        url: as mien takes it.
    """

    def __init__(
        self,
        packages: Path,
        folder: Path,
        port: int,
        *,
        authority: trustme.CA | None = None,
        mutual: bool = False,
    ) -> None:
        self.url = f"milvus{'+tls' if authority else ''}://127.0.0.1:{port}"
        self.folder = folder
        settings = {} if authority is None else _guarded(folder, authority, mutual=mutual)
        self._command = [sys.executable, "-c", _RUN, str(folder), str(port), json.dumps(settings)]
        self._environment = os.environ | {"PYTHONPATH": str(packages)}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it, and waits until it says that it is well."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        port = self._process.stdout.readline().strip()
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as said:
                    if b"OK" in said.read():
                        return
            except OSError:
                pass
            time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"Milvus did not start; its logs are in {self.folder}/logs")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all of it."""
        assert self._process is not None  # noqa: S101 - it runs
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once, and all that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
            self._process.stdout.close()
            self._process = None


def _guarded(folder: Path, authority: trustme.CA, *, mutual: bool) -> dict[str, object]:
    """Writes a certificate, and gives the values of Milvus' settings that make it ask for users over TLS."""
    folder.mkdir(parents=True, exist_ok=True)
    signed = authority.issue_cert("localhost", "127.0.0.1")
    files = {
        "server_pem_path": (b"".join(each.bytes() for each in signed.cert_chain_pems)),
        "server_key_path": signed.private_key_pem.bytes(),
        "ca_pem_path": authority.cert_pem.bytes(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    paths = {name: str(folder / name) for name in files}
    return {"authorization_enabled": True, "tls_mode": 2 if mutual else 1, **paths}


def main(arguments: Sequence[str]) -> int:
    """Installs the packages into the folder that is named."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", arguments[0]]
    return subprocess.call([*command, *_PACKAGES])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
