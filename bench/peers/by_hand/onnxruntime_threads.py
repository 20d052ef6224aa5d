"""gRPC threads and onnxruntime.

    python -m bench.peers.by_hand.onnxruntime_threads --port 8102 --graphs FOLDER

Tuned: a session uses all cores, as a lone call wants, and its threads sleep instead of spin between two
operators of one call, so that other calls get the cores.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import onnxruntime

from bench.peers.by_hand.arrays import Floats, Pixels
from bench.peers.by_hand.service import serve

NORMALISATIONS = {
    "retinaface": (np.array([104, 117, 123], np.float32), np.float32(1)),
    "sface": (np.array([127.5] * 3, np.float32), np.float32(1 / 128)),
    "arcface": (np.array([127.5] * 3, np.float32), np.float32(1 / 127.5)),
}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxNetworks:
    """The detector for one canvas and the two embedders; sessions are safe for any number of threads."""

    def __init__(self, graphs: Path, canvas: int) -> None:
        files = {name: f"{name}.onnx" for name in ("sface", "arcface")}
        files["retinaface"] = f"retinaface-{canvas}.onnx"
        self.sessions = {name: session(graphs / file) for name, file in files.items()}

    def run(self, name: str, batch: Pixels) -> list[Floats]:
        if name == "retinaface":
            batch = batch[..., ::-1]  # BGR
        mean, scale = NORMALISATIONS[name]
        pixels = np.ascontiguousarray((batch - mean).transpose(0, 3, 1, 2)) * scale
        outputs: list[Floats] = self.sessions[name].run(None, {"pixels": pixels})
        return outputs

    def detect(self, canvas: Pixels) -> tuple[Floats, Floats, Floats]:
        loc, conf, points = self.run("retinaface", canvas)
        return loc[0], conf[0], points[0]

    def embed(self, crops: Pixels, name: str) -> Floats:
        return self.run(name, crops)[0]


def load(options: argparse.Namespace) -> OnnxNetworks:
    return OnnxNetworks(options.graphs, options.canvas)


if __name__ == "__main__":
    serve(load, argparse.ArgumentParser())
