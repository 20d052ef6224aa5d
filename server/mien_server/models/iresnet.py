"""IResNet, the backbones of ArcFace: IR-50 and its relatives.

Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", arXiv:1801.07698, section
3.1.
"""

from functools import partial
from typing import TYPE_CHECKING

from mien_server.models.interface import AnyFamily
from mien_server.models.roles import EmbedderFamily

if TYPE_CHECKING:
    from mien_server.models.networks.iresnet import IResNet

DIMENSIONS = 512
"""Of their embeddings."""
BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
"""Residual blocks of each of the four layers, by architecture."""


def _network(blocks: tuple[int, ...]) -> "IResNet":
    from mien_server.models.networks.iresnet import IResNet

    return IResNet(blocks, DIMENSIONS)


FAMILIES: tuple[AnyFamily, ...] = tuple(
    EmbedderFamily(name, partial(_network, blocks)) for name, blocks in BLOCKS.items()
)
