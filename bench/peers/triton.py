"""A real Triton with the embedders in its Python backend, and perf_analyzer, which drives it and mien."""

import csv
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from bench.peers.servers import started
from bench.peers.setup import GRAPHS, ROOT, CannotRun, python_of, triton_programs
from tools.local_server import free_port

DIMENSIONS = {"sface": 128, "arcface": 512}
ENGINES = ("torch", "openvino")
_START_SECONDS = 180.0
_WINDOWS = 3
_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "face", data_type: TYPE_UINT8, dims: [ 3, 112, 112 ] }} ]
output [ {{ name: "embedding", data_type: TYPE_FP32, dims: [ {dimensions} ] }} ]
dynamic_batching {{ preferred_batch_size: [ 4 ] }}
instance_group [ {{ kind: KIND_CPU, count: {cores} }} ]
"""


class Analysis(NamedTuple):
    """What perf_analyzer says: inferences a second, and milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float


@contextmanager
def triton_running(logs: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Triton with `<network>_<engine>` for both networks and engines: its gRPC address, its process.

    Raises:
        CannotRun: it cannot be had here, or it did not start.
    """
    server, _ = triton_programs()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        _write_models(repository)
        ports = {name: free_port() for name in ("grpc", "http", "metrics")}
        command = [str(server / "bin" / "tritonserver"), f"--model-repository={repository}"]
        command += [f"--backend-directory={server / 'backends'}"]
        command += [f"--{name}-port={port}" for name, port in ports.items()]
        command += [f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")]
        # The backend's stub embeds an interpreter that takes itself for the first of that name on PATH, and
        # minds no PYTHONPATH; bench it finds in the working folder.
        home = {
            "PATH": os.pathsep.join((str(python_of("triton").parent), os.environ["PATH"])),
            "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        }
        address, log = f"127.0.0.1:{ports['grpc']}", logs / "triton.log"
        with started(command, log, home) as process:
            _wait_until_ready(address, process, log)
            yield address, process


def _write_models(repository: Path) -> None:
    for network, dimensions in DIMENSIONS.items():
        for engine in ENGINES:
            name = f"{network}_{engine}"
            text = _CONFIG.format(name=name, dimensions=dimensions, cores=psutil.cpu_count())
            given = {"graphs": str(GRAPHS), "network": network, "engine": engine}
            for key, value in given.items():
                text += f'parameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}\n'
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "config.pbtxt").write_text(text)
            model = ROOT / "bench" / "peers" / "by_hand" / "triton_model.py"
            shutil.copy(model, repository / name / "1" / "model.py")


def _wait_until_ready(address: str, process: psutil.Process, log: Path) -> None:
    give_up = time.monotonic() + _START_SECONDS
    with InferenceServerClient(address) as client:
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < give_up:
            try:
                if client.is_server_ready():
                    return
            except InferenceServerException:
                pass
            time.sleep(0.5)
    raise CannotRun(f"Triton did not start: see {log}")


def infer(address: str, model: str, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One crop [112, 112, 3] through a model of a Triton, or of mien: its embedding [d]."""
    rows = np.ascontiguousarray(crop.transpose(2, 0, 1)[None])
    face = InferInput("face", list(rows.shape), "UINT8")
    face.set_data_from_numpy(rows)
    with InferenceServerClient(address) as client:
        vector: NDArray[np.float32] = client.infer(model, [face]).as_numpy("embedding")[0]
    return vector


def analyse(address: str, model: str, callers: int, seconds: float) -> Analysis:
    """A closed loop of perf_analyzer with so many callers, for about so many seconds.

    Raises:
        CannotRun: it ended with an error.
    """
    _, analyzer = triton_programs()
    window = max(500, round(seconds * 1000 / _WINDOWS))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        # Never stable enough to stop early: every measurement has all of its windows.
        measure = ["-p", str(window), "-r", str(_WINDOWS), "-s", "999", "-f", str(report)]
        load = ["--concurrency-range", f"{callers}:{callers}", "--percentile", "99"]
        done = subprocess.run(
            [
                str(analyzer / "perf_analyzer"),
                "-m",
                model,
                "-i",
                "grpc",
                "-u",
                address,
                *load,
                *measure,
            ],
            env={"LD_LIBRARY_PATH": str(analyzer)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60 + 20 * seconds,
        )
        if done.returncode or not report.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise CannotRun(f"perf_analyzer: {lines[-1]}")
        (row,) = csv.DictReader(report.open())
    return Analysis(
        float(row["Inferences/Second"]),
        float(row["p50 latency"]) / 1e3,
        float(row["p99 latency"]) / 1e3,
    )
