"""Exports the networks that every peer runs, once: with the weights that mien serves.

    python -m bench.peers.graphs --repository FOLDER --graphs FOLDER

Writes RetinaFace for each canvas, SFace and IR-50 as ONNX graphs that take normalised pixels; the embedders
also as TorchScript that takes uint8 crops, for Triton; and IR-50's random weights, for mien to import. It is
a program of its own, so that the process that sends the load never imports torch.
"""

import argparse
import warnings
from pathlib import Path

import torch
from mien_server.models.catalogue import find_family
from mien_server.models.folding import fold_batch_norms
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mien_server.backends.precision import cpu_multiplies_bf16

CANVASES = (320, 640, 1024)
SIDE = 112
OPSET = 17
SCALES = {"sface": 128.0, "arcface": 127.5}


class OnCrops(nn.Module):
    """An embedder that normalises by itself, as a server that knows nothing but torch wants it.

    Args:
        network: takes (x - 127.5) / scale.
        scale: what to divide by.
        dtype: what it computes in.
    """

    def __init__(self, network: nn.Module, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scale = scale
        self.dtype = dtype

    def forward(self, crops: Tensor) -> Tensor:
        """[n, 3, 112, 112] uint8, RGB, to [n, d] float32."""
        pixels = ((crops.float() - 127.5) / self.scale).to(self.dtype)
        embedding: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return embedding.float()


def random_weights(path: Path) -> None:
    """IR-50 without any training: speed does not depend on what a network has learnt.

    Its batch norms are set to what random pictures bring about, or numbers would grow from layer to layer.
    """
    torch.manual_seed(0)
    network = find_family("iresnet50").network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the plain average
    with torch.no_grad():
        network.train()(torch.rand(16, 3, SIDE, SIDE) * 2 - 1)
    save_file(network.state_dict(), path)


def load(architecture: str, weights: Path) -> nn.Module:
    """The network with its batch norms folded."""
    network = find_family(architecture).network()
    network.load_state_dict(load_file(weights))
    return fold_batch_norms(network)


def export(network: nn.Module, side: int, outputs: list[str], path: Path) -> None:
    """Writes [n, 3, side, side] to `outputs` as an ONNX graph of any batch size."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter that replaces this one needs more packages
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, side, side),),
            path,
            dynamo=False,
            input_names=["pixels"],
            output_names=outputs,
            dynamic_axes={name: {0: "n"} for name in ("pixels", *outputs)},
            opset_version=OPSET,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="of mien, with its weights")
    parser.add_argument("--graphs", type=Path, required=True, help="where the graphs go")
    options = parser.parse_args()
    graphs: Path = options.graphs
    repository: Path = options.repository
    graphs.mkdir(parents=True, exist_ok=True)
    random_weights(graphs / "arcface.safetensors")
    for canvas in CANVASES:
        weights = repository / "retinaface" / "1" / "model.safetensors"
        detector = load("retinaface_mobilenet0.25", weights)
        path = graphs / f"retinaface-{canvas}.onnx"
        export(detector, canvas, ["loc", "conf", "landmarks"], path)
    dtype = torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    for name, architecture, weights in (
        ("sface", "sface", repository / "sface" / "1" / "model.safetensors"),
        ("arcface", "iresnet50", graphs / "arcface.safetensors"),
    ):
        export(load(architecture, weights), SIDE, ["embedding"], graphs / f"{name}.onnx")
        crops = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)
        with torch.inference_mode():
            script = torch.jit.trace(
                OnCrops(load(architecture, weights), SCALES[name], dtype).eval(), crops
            )
            torch.jit.freeze(script).save(graphs / f"{name}.pt")


if __name__ == "__main__":
    main()
