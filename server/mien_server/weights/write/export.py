"""Exports a network of PyTorch as an ONNX graph."""

import io
import warnings

import torch
from torch import Tensor, nn

_OPSET = 17
_TRACED_SIDE = 160
"""Of a picture that stands for pictures of all sizes while a network is traced that takes any."""


def export(network: nn.Module, height: int, width: int, *, folded: bool = False) -> bytes:
    """A network, [N, 3, H, W] to its outputs, as an ONNX graph of any batch size.

    Args:
        network: in eval mode.
        height, width: of the only images that it takes, in pixels; -1: it takes any.
        folded: whether constants may be computed and layers be merged, so that the weights are no longer
            the network's.
    """
    pixels = _pictures(2, height, width, _TRACED_SIDE)
    others = _pictures(3, height, width, 2 * _TRACED_SIDE)
    outputs, other_outputs = _outputs(network, pixels), _outputs(network, others)
    names = [f"output{index}" for index in range(len(outputs))]
    pairs = zip(["pixels", *names], [pixels, *outputs], [others, *other_outputs], strict=True)
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter that replaces this one needs a package of its own and makes the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (pixels,),
            file,  # type: ignore[arg-type]  # this exporter takes files, too
            dynamo=False,
            input_names=["pixels"],
            output_names=names,
            dynamic_axes={name: _varying(one, other) for name, one, other in pairs},
            opset_version=_OPSET,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=folded,
        )
    return file.getvalue()


def _pictures(count: int, height: int, width: int, side: int) -> Tensor:
    """Black pictures, of any side if the network takes any."""
    return torch.zeros(count, 3, side if height < 0 else height, side if width < 0 else width)


def _outputs(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        found = network(pixels)
    return list(found) if isinstance(found, tuple) else [found]


def _varying(one: Tensor, other: Tensor) -> dict[int, str]:
    """Names for the axes along which two runs' tensors differ in size, the batch's among them."""
    sizes = enumerate(zip(one.shape, other.shape, strict=True))
    return {axis: f"axis{axis}" for axis, (a, b) in sizes if a != b}
