"""The peers' environments, networks and programs, in a cache of their own; the project's is never touched.

    python -m bench.peers.setup

Makes what is missing (some minutes and 6 GB), says what cannot be made and why, and leaves the rest alone.
The benchmark does the same by itself. The cache is $XDG_CACHE_HOME/mien-bench, or ~/.cache/mien-bench.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.local_server import PROGRAM

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mien-bench"
GRAPHS = CACHE / "graphs"
TRITON = CACHE / "triton"

_NETWORKS = ("numpy", "opencv-python-headless", "simplejpeg", "openvino")
_SERVER = (*_NETWORKS, "grpcio", "grpcio-status", "googleapis-common-protos", "protobuf")
ENVIRONMENTS = {
    "threads": (*_SERVER, "onnxruntime"),
    "litserve": (*_SERVER, "litserve==0.2.19"),
    "ray": (*_SERVER, "ray[serve]==2.60.0"),
    # With NumPy 2, the Python backend of this Triton takes every array for an empty one.
    "triton": ("numpy<2", "openvino", "torch==2.13.0"),
}
"""What pip installs for whom, at the versions of the project's constraints.txt where it has no own."""
_TRITON_WHEELS = ("nvidia-pytriton==0.7.0", "tritonclient==2.41.1")


class CannotRun(Exception):
    """A peer that cannot be had here; the message is why, on one line."""


def python_of(name: str) -> Path:
    """The interpreter of an environment of `ENVIRONMENTS`, which is made if need be.

    Raises:
        CannotRun: pip could not install it.
    """
    folder = CACHE / "environments" / name
    wanted = ENVIRONMENTS[name]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in constraints if line.partition("==")[0] in wanted]
    description = "\n".join((sys.version, *wanted, *pins))

    def make(partial: Path) -> None:
        _run([sys.executable, "-m", "venv", str(partial)])
        limits = partial / "constraints.txt"
        limits.write_text("\n".join(pins) + "\n")
        install = ["-m", "pip", "install", "--quiet", "-c", str(limits)]
        _run([str(partial / "bin" / "python"), *install, *wanted])

    _once(folder, description, make)
    return folder / "bin" / "python"


def repository_for(canvas: int) -> Path:
    """A model repository for mien: the shipped models with this one canvas, and an IR-50 of random weights.

    Raises:
        CannotRun: the weights could not be had.
    """
    configs = {
        name: (ROOT / "model_repository" / name / "config.pbtxt").read_text()
        for name in ("retinaface", "sface", "arcface")
    }
    installer = sorted((ROOT / "server" / "mien_server" / "weights").rglob("*.py"))
    wanted = "".join((*configs.values(), *(path.read_text() for path in installer)))

    def make(partial: Path) -> None:
        for name, text in configs.items():
            (partial / name).mkdir()
            (partial / name / "config.pbtxt").write_text(_with_canvas(text, canvas))
        flags = ["--model-repository", str(partial)]
        _run([str(PROGRAM), "models", "install", "retinaface", "sface", *flags])
        _once(GRAPHS, "1", lambda graphs: _export(partial, graphs))
        weights = str(GRAPHS / "arcface.safetensors")
        _run([str(PROGRAM), "models", "import", "arcface", weights, *flags])

    folder = CACHE / "repositories" / str(canvas)
    _once(folder, wanted, make)
    return folder


def _with_canvas(config: str, canvas: int) -> str:
    """A model's config.pbtxt with this canvas alone, in its buckets and in its warm-up."""
    config = re.sub(
        r'(key: "buckets", value: { string_value: )"[0-9, ]+"', rf'\1"{canvas}"', config
    )
    return re.sub(r"dims: \[ 3, (320|640), \1 \]", f"dims: [ 3, {canvas}, {canvas} ]", config)


def _export(repository: Path, graphs: Path) -> None:
    program = [sys.executable, "-m", "bench.peers.graphs"]
    _run([*program, "--repository", str(repository), "--graphs", str(graphs)])


def triton_programs() -> tuple[Path, Path]:
    """Folders of Triton and of perf_analyzer, unpacked from their wheels.

    Raises:
        CannotRun: they could not be had, or not put together for this Python.
    """

    def make(partial: Path) -> None:
        wheels = partial / "wheels"
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        _run([*download, "-d", str(wheels), *_TRITON_WHEELS])
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(partial)
        server = partial / "pytriton" / "tritonserver"
        name = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = server / "python_backend_stubs" / name / "triton_python_backend_stub"
        if not stub.exists():
            raise CannotRun(f"this Triton has no Python backend for Python {name}")
        shutil.copy(stub, server / "backends" / "python")
        (analyzer,) = partial.glob("tritonclient-*.data/data/bin")
        libraries = partial / "nvidia_pytriton.libs"
        # What the analyser asks for by its own name lies in Triton's wheel under a longer one.
        for wanted, pattern in {
            "libcudart.so.12": "libcudart-*",
            "libb64.so.0d": "libb64-*",
        }.items():
            (found,) = libraries.glob(pattern)
            (analyzer / wanted).symlink_to(os.path.relpath(found, analyzer))
        programs = (
            server / "bin" / "tritonserver",
            server / "backends" / "python" / stub.name,
            analyzer / "perf_analyzer",
        )
        for program in programs:
            program.chmod(0o755)

    _once(TRITON, "\n".join(_TRITON_WHEELS), make)
    (analyzer,) = TRITON.glob("tritonclient-*.data/data/bin")
    return TRITON / "pytriton" / "tritonserver", analyzer


def _once(folder: Path, wanted: str, make: Callable[[Path], None]) -> None:
    """Makes a folder, unless it was made from the same description before."""
    stamp = folder / ".made"
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"making {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    stamp.write_text(digest)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=1800
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CannotRun(f"{Path(command[0]).name} {' '.join(command[1:4])}…: {lines[-1]}")


def prepare() -> dict[str, str]:
    """Makes all that can be made. What cannot: by environment, or "programs" of Triton, and why.

    Raises:
        CannotRun: mien's own models could not be had, without which nothing can be compared.
    """
    repository_for(320)
    steps: dict[str, Callable[[], object]] = {
        name: functools.partial(python_of, name) for name in ENVIRONMENTS
    }
    steps["programs"] = triton_programs
    failed = {}
    for name, make in steps.items():
        try:
            make()
        except CannotRun as error:
            failed[name] = str(error)
    return failed


if __name__ == "__main__":
    for what, why in prepare().items():
        print(f"{what}: not made: {why}")
    print(CACHE)
