"""From uint8 pixels to float32 outputs: what every device runs."""

import torch
from torch import Tensor, nn

from mien_server.models.interface import Normalisation


class PixelNetwork(nn.Module):
    """A network with its normalisation in front: RGB uint8 in, float32 out.

    Args:
        network: takes [N, 3, H, W] of `dtype`; returns a tensor or a tuple of them, batch first.
        normalisation: (x[channel order] - mean) * scale, computed in float32.
        dtype: what the network computes in.
    """

    mean: Tensor
    scale: Tensor | float
    order: Tensor | None

    def __init__(
        self, network: nn.Module, normalisation: Normalisation, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(normalisation.mean))
        if isinstance(normalisation.scale, tuple):
            self.register_buffer("scale", torch.tensor(normalisation.scale))
        else:
            self.scale = normalisation.scale
        order = torch.tensor([2, 1, 0]) if normalisation.channel_order == "BGR" else None
        self.register_buffer("order", order)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """[N, H, W, 3] uint8 RGB to float32 outputs, batch first."""
        outputs = self.network(self.normalise(pixels))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(tensor.float() for tensor in tensors)

    def normalise(self, pixels: Tensor) -> Tensor:
        """[N, H, W, 3] uint8 RGB to [N, 3, H, W] of the network's dtype, channels last in memory."""
        n, height, width, _ = pixels.shape
        if self.order is not None:
            pixels = pixels.index_select(-1, self.order)
        # Whole image rows at a time: broadcasting over an innermost axis of 3 is three times slower.
        values = pixels.reshape(n, height, width * 3).float()
        scale = self.scale.repeat(width) if isinstance(self.scale, Tensor) else self.scale
        values = values.sub_(self.mean.repeat(width)).mul_(scale).to(self.dtype)
        return values.view(n, height, width, 3).permute(0, 3, 1, 2)
