"""`make loadtest`: locust, headless, for a minute, with an HTML report in out/.

Against --address, or else against a server of its own on a free port of loopback, with the models of
model_repository/. Callers wait for their answers (closed loop); with --rate, calls come at random moments,
however long answers take (open loop). The exit status is 0 only if every call was answered right, or with
--slo, if the objectives of that file are met.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loadtest.slo import read_objectives
from mien_server.load.shapes import SHAPES
from tools.local_server import PROGRAM, ServerFailed, free_port, local_server

ROOT = Path(__file__).resolve().parent.parent
LAST_ANSWERS = 15
"""Seconds that calls in progress have at the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the load; the exit status is locust's."""
    options = _parser().parse_args(arguments)
    if options.slo:
        read_objectives(options.slo)  # rather now than after an hour
    options.out.mkdir(parents=True, exist_ok=True)
    report = options.out / "loadtest.html"
    with ExitStack() as stack:
        address = options.address
        if not address:
            repository = ROOT / "model_repository"
            flags = ["--model-repository", str(repository)]
            subprocess.run([PROGRAM, "models", "install", *flags], check=True)
            log = options.out / "loadtest-server.log"
            address = stack.enter_context(local_server(log, flags=flags)).address
        command = _locust(options, address)
        if options.workers > 1:
            port = free_port()
            stack.enter_context(_workers(command, options.workers, port))
            command += ["--master", "--expect-workers", str(options.workers)]
            command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
        if options.web:
            show = ["--web-host", "127.0.0.1"]
        else:
            show = ["--headless", "--only-summary", "--html", str(report)]
        # Ctrl-C, with which the web page ends, is for locust: it concludes.
        status = _status(subprocess.Popen([*command, *show], cwd=ROOT))
    if not options.web:
        print(f"report: {report}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make loadtest", description=__doc__)
    parser.add_argument("--address", help="host:port of a running server")
    parser.add_argument("--users", type=int, default=8, help="concurrent callers (default: 8)")
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        help="calls a second, as an open loop, instead of callers",
    )
    parser.add_argument(
        "--shape",
        choices=list(SHAPES),
        default="steady",
        help="of callers or rate (default: steady)",
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--slo", type=Path, help="a TOML file of objectives, see loadtest/slo.py")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--web", action="store_true", help="locust's web page, to start by hand")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the report goes")
    return parser


def _locust(options: argparse.Namespace, address: str) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py")]
    command += ["--host", address, "--shape", options.shape, "--stop-timeout", str(LAST_ANSWERS)]
    # An open loop needs no more users than there are processes to carry it.
    users = options.workers if options.rate else options.users
    command += ["--users", str(users), "--spawn-rate", str(users)]
    if options.rate:
        command += ["--rate", str(options.rate)]
    if options.slo:
        command += ["--slo", str(options.slo.resolve())]
    if not options.web:
        command += ["--run-time", f"{options.seconds}s"]
    return [*command, "OpenFaceUser" if options.rate else "FaceUser"]


@contextmanager
def _workers(command: Sequence[str], count: int, port: int) -> Iterator[None]:
    """Locust's workers, each a process of its own; the master sends them home."""
    join = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
    workers = [subprocess.Popen([*command, *join], cwd=ROOT) for _ in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            try:
                worker.wait(LAST_ANSWERS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _status(process: subprocess.Popen[bytes]) -> int:
    """Waits for a program, which gets Ctrl-C by itself."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ServerFailed, subprocess.CalledProcessError, ValueError) as error:
        sys.exit(f"loadtest: {error}")
