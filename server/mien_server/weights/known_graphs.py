"""The graphs of the networks that mien installs, made beforehand, so that no PyTorch is needed to make them.

`graphs/<architecture>.onnx` is what `write/export.py` exports, without any weights: of each there is the
name, which is its key in a checkpoint, and the shape. `tools/known_graphs.py` makes them anew.
"""

from pathlib import Path

import onnx

from mien_server.backends.weights_file import Layout

_FOLDER = Path(__file__).parent / "graphs"
_COUNTER = "num_batches_tracked"
"""Of each batch norm: a state_dict has it, and no network uses it."""


def known_graph(architecture: str) -> onnx.ModelProto | None:
    """The graph of an architecture, whose weights are empty; None if none was made beforehand."""
    path = _FOLDER / f"{architecture}.onnx"
    return onnx.ModelProto.FromString(path.read_bytes()) if path.is_file() else None


def layout_of(graph: onnx.ModelProto) -> Layout:
    """The tensors that the weights of a known graph must have: all of the network's state_dict."""
    found: dict[str, tuple[tuple[int, ...], bool]] = {}
    for tensor in graph.graph.initializer:
        found[tensor.name] = (tuple(tensor.dims), True)
        layer, _, part = tensor.name.rpartition(".")
        if part == "running_var":
            found[f"{layer}.{_COUNTER}"] = ((), False)
    return found
