"""Every model family by the name that `config.pbtxt` gives in `architecture`, and every role of them.

Families are what the modules beside this one list in `FAMILIES`, and what other installed packages offer as
entry points of the group `mien.families`: each is a family, or a tuple of them. Their modules are imported
at the first look-up.
"""

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from mien_server import models
from mien_server.errors import OperatorError
from mien_server.models.interface import AnyFamily, AnyRole

GROUP = "mien.families"
"""Of the entry points of other packages."""


class UnknownArchitecture(ValueError):
    """No family has this name; the message lists those there are."""


class BrokenPackage(OperatorError):
    """Another package offers families that cannot be used; the message names it and says why."""


@cache
def families() -> Mapping[str, AnyFamily]:
    """All families by name.

    Raises:
        BrokenPackage: an entry point cannot be loaded, is no family, or takes a name that is taken.
    """
    found = {family.name: family for family in _own()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (_package(point), point.name)):
        for family in _offered(point):
            if family.name in found:
                raise _broken(point, f"there is an architecture {family.name!r} already")
            if any(
                role.name == family.role.name and role is not family.role for role in _roles(found)
            ):
                raise _broken(
                    point, f"there is a role {family.role.name!r} already, and it is another"
                )
            found[family.name] = family
    return MappingProxyType(found)


def find_family(architecture: str) -> AnyFamily:
    """The family of that name.

    Raises:
        UnknownArchitecture: there is none.
        BrokenPackage: as `families` does.
    """
    try:
        return families()[architecture]
    except KeyError:
        known = ", ".join(sorted(families()))
        raise UnknownArchitecture(
            f"unknown architecture {architecture!r}: must be one of {known}"
        ) from None


@cache
def roles() -> Mapping[str, AnyRole]:
    """The roles of all families by name.

    Raises:
        BrokenPackage: as `families` does.
    """
    return MappingProxyType({role.name: role for role in _roles(families())})


def _roles(families: Mapping[str, AnyFamily]) -> Iterator[AnyRole]:
    return (family.role for family in families.values())


def _own() -> Iterator[AnyFamily]:
    """What the modules beside this one list."""
    for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        if module.name != __name__:
            yield from getattr(import_module(module.name), "FAMILIES", ())


def _offered(point: EntryPoint) -> tuple[AnyFamily, ...]:
    """The families of an entry point.

    Raises:
        BrokenPackage: there are none.
    """
    try:
        loaded = point.load()
    except Exception as error:  # whatever importing somebody's module may raise
        raise _broken(point, f"{type(error).__name__}: {error}") from error
    offered = loaded if isinstance(loaded, tuple) else (loaded,)
    for each in offered:
        missing = [
            name
            for name in ("name", "role", "network", "arrange", "results")
            if not hasattr(each, name)
        ]
        if missing:
            raise _broken(point, f"{each!r} is no family: it lacks {', '.join(missing)}")
    return offered


def _broken(point: EntryPoint, problem: str) -> BrokenPackage:
    return BrokenPackage(
        f"the installed package {_package(point)} offers model families by the entry point"
        f" {point.name!r} ({point.value}), which cannot be used: {problem}. Mend or uninstall it"
    )


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"
