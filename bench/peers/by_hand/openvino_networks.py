"""The networks on OpenVINO, for every server by hand that uses it.

Tuned: uint8 pixels go in as they are and the graph normalises them; a dynamic batch; bfloat16 for embedders
where the processor multiplies in it and float32 for the detector, whose landmarks bfloat16 would move.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

# Its converter, which nothing here needs, would report its use.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402

from bench.peers.by_hand.arrays import CROP, Floats, Pixels  # noqa: E402

core = ov.Core()

NORMALISATIONS = {
    # Channel order, mean in that order, divisor.
    "retinaface": ("BGR", [104.0, 117.0, 123.0], 1.0),
    "sface": ("RGB", [127.5] * 3, 128.0),
    "arcface": ("RGB", [127.5] * 3, 127.5),
}


def compiled(
    graphs: Path, name: str, side: int, *, layout: str = "NHWC", **properties: Any
) -> ov.CompiledModel:
    """A graph that takes RGB uint8, [n, side, side, 3] or, with the layout NCHW, [n, 3, side, side]."""
    file = f"{name}-{side}.onnx" if name == "retinaface" else f"{name}.onnx"
    model = core.read_model(graphs / file)
    model.reshape([-1, 3, side, side])
    order, mean, scale = NORMALISATIONS[name]
    pre = PrePostProcessor(model)
    pre.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout(layout))
    pre.input().model().set_layout(ov.Layout("NCHW"))
    steps = pre.input().preprocess().convert_element_type(ov.Type.f32)
    if order == "BGR":
        steps.reverse_channels()
    steps.mean(mean).scale(scale)
    bf16 = name != "retinaface" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = ov.Type.bf16 if bf16 else ov.Type.f32
    return core.compile_model(
        pre.build(), "CPU", {"INFERENCE_PRECISION_HINT": precision, **properties}
    )


class OpenVinoNetworks:
    """The detector for one canvas and the two embedders; safe for any number of threads."""

    def __init__(self, graphs: Path, canvas: int, **properties: Any) -> None:
        self.models = {
            "retinaface": compiled(graphs, "retinaface", canvas, **properties),
            "sface": compiled(graphs, "sface", CROP, **properties),
            "arcface": compiled(graphs, "arcface", CROP, **properties),
        }
        self.own = threading.local()

    def run(self, name: str, batch: Pixels) -> list[Floats]:
        """The outputs of a batch. Each thread keeps its infer requests, which are costly to make."""
        requests = self.own.__dict__
        if name not in requests:
            requests[name] = self.models[name].create_infer_request()
        results = requests[name].infer([np.ascontiguousarray(batch)], share_inputs=True)
        return list(results.values())

    def detect(self, canvas: Pixels) -> tuple[Floats, Floats, Floats]:
        loc, conf, points = self.run("retinaface", canvas)
        return loc[0], conf[0], points[0]

    def embed(self, crops: Pixels, name: str) -> Floats:
        return self.run(name, crops)[0]
