"""The backends side by side: the same networks, random weights, in every precision that each has.

Rows a second of one core, as an executor has under load, and of one picture alone with all cores. A
single core's time is the processor time of the process, so that other work on the machine counts less. Rows
are uint8 pictures: normalising is part of it, the families' post-processing is not. The best of some rounds
counts, in which the candidates take turns.

    python -m bench.backends [--rounds 6] [--networks sface iresnet50] [--batch-sizes 1 4]
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import nn

from mien_server.backends import onnx, openvino, pytorch
from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.precision import Precision, cpu_multiplies_bf16
from mien_server.load.report import machine, table
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.networks.folding import fold_batch_norms
from mien_server.models.roles import DETECTOR, EMBEDDER, EmbedderOptions, EmbedderRow
from mien_server.weights.write.export import export
from mien_server.weights.write.graph import write_graph
from mien_server.weights.write.quantise_graph import quantise_graph

NETWORKS = ["sface", "iresnet50", "retinaface_mobilenet0.25"]
SIDES = {DETECTOR: 640, EMBEDDER: 112}
INPUT = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5)
COLUMNS = (
    *("pytorch fp32", "pytorch bf16", "openvino fp32", "openvino bf16", "openvino int8"),
    *("onnxruntime fp32", "onnxruntime int8"),
)
BACKENDS = {"pytorch": pytorch, "openvino": openvino, "onnxruntime": onnx}


def rows(side: int, count: int) -> list[EmbedderRow]:
    random = np.random.default_rng(0)
    return [EmbedderRow(random.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def instances(
    architecture: str, device: CpuDevice, folder: Path
) -> Iterator[tuple[str, LoadedInstance]]:
    """The network by backend and precision."""
    family = find_family(architecture)
    side = SIDES[family.role]
    network = family.network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(
                module, nn.PReLU
            ):  # slopes that are all the same would be another network
                module.weight.uniform_(0.1, 0.4)
    weights, graph, quantised = (folder / name for name in ("w.safetensors", "g.onnx", "q.onnx"))
    save_file(network.state_dict(), weights)
    write_graph(family, weights)
    graph.write_bytes(export(fold_batch_norms(network), side, side, folded=True))
    files: dict[str, tuple[Path, Precision]] = {
        "pytorch fp32": (weights, "fp32"),
        "openvino fp32": (weights, "fp32"),
        "onnxruntime fp32": (graph, "fp32"),
    }
    if cpu_multiplies_bf16():
        files |= {"pytorch bf16": (weights, "bf16"), "openvino bf16": (weights, "bf16")}
    if family.role is EMBEDDER:
        pixels = onnx.normalise([row.image for row in rows(side, 1)], INPUT)
        quantised.write_bytes(quantise_graph(graph.read_bytes(), pixels, 0))
        files |= dict.fromkeys(("openvino int8", "onnxruntime int8"), (quantised, "int8"))
    for name, (path, precision) in files.items():
        instance = BACKENDS[name.split()[0]].load(
            family,
            path,
            normalisation=INPUT,
            options=EmbedderOptions(),
            precision=precision,
            device=device,
            sides=(side,),
            max_batch_size=8,
        )
        yield name, instance


def seconds_of(
    instance: LoadedInstance, device: CpuDevice, batch: list[EmbedderRow], cores: int
) -> float:
    """What one batch takes: of the processor on one core, else by the clock on the wall."""
    clock = time.process_time if cores == 1 else time.perf_counter
    device.begin(cores)
    started = clock()
    instance.compute(instance.collate(batch))
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    device = CpuDevice()
    versions = f"PyTorch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{machine()}\n{versions}\nrows/s (share of pytorch fp32)\n")
    layouts = [(size, 1) for size in options.batch_sizes]
    if device.cores > 1:
        layouts.append((1, device.cores))
    lines = []
    for architecture in options.networks:
        side = SIDES[find_family(architecture).role]
        with tempfile.TemporaryDirectory() as folder:
            loaded = dict(instances(architecture, device, Path(folder)))
        for size, cores in layouts:
            batch = rows(side, size)
            best = dict.fromkeys(loaded, math.inf)
            for _ in range(options.rounds + 1):
                for name, instance in loaded.items():
                    best[name] = min(best[name], seconds_of(instance, device, batch, cores))
            base = best["pytorch fp32"]
            cells = [
                f"{size / best[name]:.1f} ({base / best[name]:.2f})" if name in best else "-"
                for name in COLUMNS
            ]
            lines.append([architecture, size, cores, *cells])
    print(table(["network", "batch", "cores", *COLUMNS], lines))


if __name__ == "__main__":
    main()
