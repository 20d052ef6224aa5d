"""Every model family by the name that `config.pbtxt` gives in `architecture`."""

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType

from mien_server import models
from mien_server.models.interface import Family


class UnknownArchitecture(ValueError):
    """No family has this name; the message lists those there are."""


def _families() -> Iterator[Family]:
    """What the modules beside this one list in `FAMILIES`."""
    for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        if module.name != __name__:
            yield from getattr(import_module(module.name), "FAMILIES", ())


FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _families()})


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
