"""The networks that no publisher is known for: those that other installed packages bring as families."""

from collections.abc import Mapping
from typing import Any

import torch

from mien_server.models.families import families
from mien_server.models.interface import CROP_SIDE, AnyFamily, NoNetwork
from mien_server.models.roles import EMBEDDER
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.recognised import NO_LICENSE, Recognised
from mien_server.weights.recognise.state_dicts import find, fit, for_pytorch


def own(contents: Mapping[Any, Any]) -> Recognised | None:
    """The state_dict of any family that mien or an installed package has, by the names of its tensors.

    They must be all of the network's and no others. What its input is and who may use it is not known.
    """
    for family in families().values():
        expected = _keys(family)
        if not expected:
            continue
        try:
            found = find(contents, min(expected))
        except WeightsError:  # several networks have a tensor of this name
            continue
        if found is None or found.others or found.state.keys() != expected:
            continue
        state, notes = fit(found, family.name)
        return for_pytorch(
            family.name,
            state,
            notes,
            title=f"the network of architecture {family.name!r}",
            normalisation=None,
            license_=NO_LICENSE,
            dimensions=_dimensions(family),
        )
    return None


def _keys(family: AnyFamily) -> set[str]:
    """The names of a network's tensors; none for a family that exists as graphs only."""
    try:
        with torch.device("meta"):
            return set(family.network().state_dict())
    except NoNetwork:
        return set()


def _dimensions(family: AnyFamily) -> int:
    """Of an embedder's vectors, or 0 where that cannot be told."""
    if family.role is not EMBEDDER:
        return 0
    with torch.device("meta"), torch.inference_mode():
        try:
            vectors = family.network()(torch.zeros(1, 3, CROP_SIDE, CROP_SIDE))
        except RuntimeError:  # it sees crops of another size, which its model's config.pbtxt says
            return 0
    return int(vectors.shape[1])
