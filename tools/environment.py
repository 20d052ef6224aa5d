"""Builds .venv from pyproject.toml and constraints.txt; `make` runs it when one of them changed.

Standard library only. Two runs at once take turns: the second finds the work done.
"""

import fcntl
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
SOURCES = (ROOT / "pyproject.toml", ROOT / "constraints.txt")


def main() -> None:
    """Creates or updates the environment, unless another run just did."""
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        sys.exit(
            f"{sys.executable} has no venv module. Install it (Debian: apt install python3-venv) or"
            " name another interpreter: make PYTHON=/path/to/python3.11"
        )
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _current():
            _build()


def _current() -> bool:
    return STAMP.exists() and all(
        source.stat().st_mtime <= STAMP.stat().st_mtime for source in SOURCES
    )


def _build() -> None:
    python = VENV / "bin" / "python"
    if not _runs(python):
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    wanted = ["-c", f"{ROOT}/constraints.txt", "-e", f"{ROOT}[dev]"]
    if subprocess.run([python, "-m", "pip", "install", *wanted], check=False).returncode:
        sys.exit("The environment could not be installed: pip says why above.")
    STAMP.touch()


def _runs(python: Path) -> bool:
    return python.exists() and not subprocess.run([python, "-c", ""], check=False).returncode


if __name__ == "__main__":
    main()
