"""An embedder in Triton's Python backend: `model.py` of every model of the Triton peer.

The config's parameters say which engine runs which network. An instance is a process of one thread; Triton
batches, and there are as many instances as cores.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """crops UINT8 [n, 3, 112, 112] to embedding FP32 [n, d]."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        given = {key: value["string_value"] for key, value in parameters.items()}
        load = load_torch if given["engine"] == "torch" else load_openvino
        self.run = load(given)

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [triton.get_input_tensor_by_name(r, "face").as_numpy() for r in requests]
        vectors = self.run(np.concatenate(inputs) if len(inputs) > 1 else inputs[0])
        ends = np.cumsum([len(rows) for rows in inputs])[:-1]
        return [
            triton.InferenceResponse([triton.Tensor("embedding", np.ascontiguousarray(rows))])
            for rows in np.split(vectors, ends)
        ]


def load_torch(given: dict[str, str]) -> Any:
    import torch

    torch.set_num_threads(1)
    network = torch.jit.load(given["graphs"] + f"/{given['network']}.pt")

    def run(crops: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(crops)).numpy()

    return run


def load_openvino(given: dict[str, str]) -> Any:
    from pathlib import Path

    from bench.peers.by_hand.openvino_networks import compiled

    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    model = compiled(Path(given["graphs"]), given["network"], 112, layout="NCHW", **options)
    request = model.create_infer_request()
    return lambda crops: request.infer([crops], share_inputs=True)[0].copy()
