"""`make loadtest`: locust, headless, for a minute, with an HTML report in out/.

Against --address, or else against a server of its own on a free port of loopback, with the models
of model_repository/.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tools.local_server import PROGRAM, ServerFailed, local_server

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the load; the exit status is locust's: 0 only if every call was answered right."""
    parser = argparse.ArgumentParser(prog="make loadtest", description=__doc__)
    parser.add_argument("--address", help="host:port of a running server")
    parser.add_argument("--users", type=int, default=8, help="concurrent callers (default: 8)")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the report goes")
    options = parser.parse_args(arguments)
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
        locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py")]
        load = ["--users", str(options.users), "--spawn-rate", str(options.users)]
        load += ["--run-time", f"{options.seconds}s", "--host", address]
        show = ["--headless", "--only-summary", "--html", str(report)]
        status = subprocess.run([*locust, *load, *show], check=False).returncode
    print(f"report: {report}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ServerFailed, subprocess.CalledProcessError) as error:
        sys.exit(f"loadtest: {error}")
