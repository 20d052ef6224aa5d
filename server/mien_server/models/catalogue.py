"""Every model family by the name that `config.pbtxt` gives in `architecture`."""

from collections.abc import Mapping
from types import MappingProxyType

from mien_server.models import iresnet, retinaface, sface
from mien_server.models.interface import Family

_ALL: tuple[Family, ...] = (
    *retinaface.FAMILIES,
    *iresnet.FAMILIES,
    *sface.FAMILIES,
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})


class UnknownArchitecture(ValueError):
    """No family has this name; the message lists those there are."""


def find_family(architecture: str) -> Family:
    """The family of that name.

    Raises:
        UnknownArchitecture: there is none.
    """
    try:
        return FAMILIES[architecture]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise UnknownArchitecture(
            f"unknown architecture {architecture!r}: must be one of {known}"
        ) from None
