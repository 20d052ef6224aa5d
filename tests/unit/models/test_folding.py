"""Folded networks are the same functions."""

import pytest
import torch
from torch import Tensor, nn

from mien_server.models.families import find_family
from mien_server.models.networks.folding import fold_batch_norms

# Batch norms that must stay: those that no convolution or linear layer precedes.
NETWORKS = [
    ("retinaface_mobilenet0.25", 96, 0),
    ("retinaface_resnet50", 96, 0),
    pytest.param("iresnet50", 112, 25, marks=pytest.mark.long),
    ("sface", 112, 1),
]


def batch_norms(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def with_lived_in_batch_norms(network: nn.Module, side: int) -> nn.Module:
    """Gives every batch norm random weights, and the running statistics of random pixels."""
    torch.manual_seed(7)
    for norm in batch_norms(network):
        norm.momentum = 0.9
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, side, side))
    return network.eval()


@pytest.mark.parametrize(("name", "side", "kept"), NETWORKS)
def test_folded_network_gives_the_same_outputs(name: str, side: int, kept: int) -> None:
    network = with_lived_in_batch_norms(find_family(name).network(), side)
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = network(pixels)

    fold_batch_norms(network)

    with torch.inference_mode():
        torch.testing.assert_close(network(pixels), expected, atol=1e-4, rtol=0)
    assert len(batch_norms(network)) == kept


def test_batch_norms_that_no_module_declares_foldable_stay() -> None:
    class BeforeAndAfter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1 = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn2 = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.bn1(x))
            out: Tensor = self.bn2(x) + x
            return out

    assert len(batch_norms(fold_batch_norms(BeforeAndAfter().eval()))) == 2


def test_neighbours_in_a_sequence_are_folded_only_as_layer_and_batch_norm() -> None:
    network = with_lived_in_batch_norms(
        nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.PReLU(5),
            nn.BatchNorm2d(5),
        ),
        8,
    )
    pixels = torch.randn(2, 3, 8, 8)
    expected = network(pixels)

    fold_batch_norms(network)

    assert [norm.num_features for norm in batch_norms(network)] == [3, 5]
    torch.testing.assert_close(network(pixels), expected, atol=1e-5, rtol=0)


def test_folding_again_changes_nothing() -> None:
    network = with_lived_in_batch_norms(find_family("sface").network(), 112)
    once = {key: value.clone() for key, value in fold_batch_norms(network).state_dict().items()}
    torch.testing.assert_close(dict(fold_batch_norms(network).state_dict()), once, atol=0, rtol=0)


def test_a_linear_layer_and_its_batch_norm_are_folded() -> None:
    network = with_lived_in_batch_norms(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)), 8
    )
    pixels = torch.randn(2, 3, 8, 8)
    expected = network(pixels)

    fold_batch_norms(network)

    assert not batch_norms(network)
    torch.testing.assert_close(network(pixels), expected, atol=1e-5, rtol=0)


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norms(find_family("sface").network().train())
