"""Measures what mien takes on the disk, installed from its wheel: `python -m tools.installed_size`.

Prints the rows of the table in docs/operations.md, and fails beyond its bounds. pip says which packages there
are and which files are theirs; bytecode counts, what an empty environment has does not.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_MIB = {"mien": 60, "mien[server]": 900}
"""Bounds of what is installed: of the SDK beyond numpy and gRPC, of the server in all."""
BESIDE = ("numpy", "grpcio")

_SIZES = """
import json
from importlib.metadata import distributions
found = {}
for each in distributions():
    paths = {path.locate() for path in each.files or ()}
    found[each.name] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(found))
"""


def main() -> int:
    """Installs one after the other; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="installed-size-") as folder:
        wheel = build_wheel(Path(folder))
        python = make_environment(Path(folder) / "environment")
        before = sizes(python)
        worst = 0
        for extras, most in MOST_MIB.items():
            install(python, wheel, extras)
            whole, beyond = mebibytes(before, sizes(python))
            print(f"| `{extras}` | {whole:.0f} | {beyond:.0f} |")
            worst |= (beyond if extras == "mien" else whole) > most
    return int(worst)


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """The wheel of mien, in a folder."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, folder, source], check=True)
    (wheel,) = folder.glob("mien-*.whl")
    return wheel


def make_environment(folder: Path) -> Path:
    """An empty environment; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, wheel: Path, requirement: str) -> None:
    """Installs the wheel, perhaps with extras (`mien[server]`), in the versions that mien is tested with."""
    extras = requirement.removeprefix("mien")
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", f"{ROOT}/constraints.txt"]
    subprocess.run([*pip, f"{wheel}{extras}"], check=True)


def sizes(python: Path) -> dict[str, int]:
    """Bytes of every distribution in an environment, by its name."""
    done = subprocess.run([python, "-c", _SIZES], check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def mebibytes(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[float, float]:
    """MiB of what came into an environment: in all, and beyond numpy and gRPC."""
    came = {name: size for name, size in after.items() if name not in before}
    beyond = sum(size for name, size in came.items() if name not in BESIDE)
    return sum(came.values()) / 2**20, beyond / 2**20


if __name__ == "__main__":
    sys.exit(main())
