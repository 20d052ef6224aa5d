"""SFace: a small embedding network of the shape of MobileNet v1.

Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", arXiv:2205.12010.
"""

from typing import TYPE_CHECKING

from mien_server.models.interface import AnyFamily
from mien_server.models.roles import EmbedderFamily

if TYPE_CHECKING:
    from mien_server.models.networks.sface import SFace


def _network() -> "SFace":
    from mien_server.models.networks.sface import SFace

    return SFace()


FAMILIES: tuple[AnyFamily, ...] = (EmbedderFamily("sface", _network),)
