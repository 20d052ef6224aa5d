"""Makes the graphs that mien carries of the networks that it installs: `python -m tools.known_graphs`.

To be run when a network in `models/networks/` or the export of graphs has changed; a test says so.
"""

from pathlib import Path

import onnx
import torch

from mien_server.models.families import find_family
from mien_server.models.interface import CROP_SIDE
from mien_server.weights import known_graphs
from mien_server.weights.write.export import export

ARCHITECTURES = {"retinaface_mobilenet0.25": -1, "sface": CROP_SIDE}
"""With the side of the only images that each takes, in pixels; -1: it takes any."""
FOLDER = Path(known_graphs.__file__).parent / "graphs"


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(exist_ok=True)
    for architecture in ARCHITECTURES:
        (FOLDER / f"{architecture}.onnx").write_bytes(make(architecture))


def make(architecture: str) -> bytes:
    """The graph of an architecture without its weights."""
    network, side = find_family(architecture).network(), ARCHITECTURES[architecture]
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            # The exporter would make one of tensors that are equal.
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    graph = onnx.ModelProto.FromString(export(network, side, side))
    graph.producer_version = ""  # so that another PyTorch makes the same
    for tensor in graph.graph.initializer:
        tensor.ClearField("raw_data")
    return graph.SerializeToString(deterministic=True)


if __name__ == "__main__":
    main()
