import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mien_server.backends.network import PixelNetwork
from mien_server.models.interface import Normalisation


class _Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x.mean((2, 3))


@pytest.mark.parametrize(
    ("normalisation", "reverse"),
    [
        (Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5), False),
        (Normalisation("RGB", (123.0, 117.0, 104.0), 1.0), False),
        (
            Normalisation("RGB", (123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
            False,
        ),
        (
            Normalisation("BGR", (103.53, 116.28, 123.675), (1 / 57.375, 1 / 57.12, 1 / 58.395)),
            True,
        ),
        (Normalisation("BGR", (104.0, 117.0, 123.0), 1.0), True),
    ],
)
def test_normalisation_is_the_formula(normalisation: Normalisation, reverse: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    network = PixelNetwork(nn.Identity(), normalisation, torch.float32)

    (output,) = network(torch.from_numpy(pixels))

    ordered = pixels[..., ::-1] if reverse else pixels
    mean = np.array(normalisation.mean, np.float32)
    wanted = (ordered.astype(np.float32) - mean) * np.array(normalisation.scales, np.float32)
    np.testing.assert_allclose(output.numpy(), wanted.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_the_network_sees_channels_last_memory() -> None:
    network = PixelNetwork(nn.Identity(), Normalisation("BGR", (0, 0, 0), 1), torch.float32)
    values = network.normalise(torch.zeros((2, 8, 8, 3), dtype=torch.uint8))
    assert values.shape == (2, 3, 8, 8)
    assert values.is_contiguous(memory_format=torch.channels_last)


def test_the_network_sees_its_dtype_and_outputs_are_float32() -> None:
    network = PixelNetwork(nn.Conv2d(3, 4, 3), Normalisation("RGB", (0, 0, 0), 1), torch.bfloat16)
    pixels = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    assert network.normalise(pixels).dtype == torch.bfloat16
    assert network(pixels)[0].dtype == torch.float32


def test_every_output_of_a_network_is_kept() -> None:
    network = PixelNetwork(_Two(), Normalisation("RGB", (0, 0, 0), 1), torch.float32)
    outputs = network(torch.full((3, 4, 4, 3), 5, dtype=torch.uint8))
    assert [tuple(output.shape) for output in outputs] == [(3, 3, 4, 4), (3, 3)]
    assert torch.equal(outputs[1], torch.full((3, 3), 5.0))


def test_the_pixels_are_left_as_they_were() -> None:
    network = PixelNetwork(nn.Identity(), Normalisation("RGB", (9, 9, 9), 2), torch.float32)
    pixels = torch.full((1, 2, 2, 3), 7, dtype=torch.uint8)
    network(pixels)
    assert (pixels == 7).all()
