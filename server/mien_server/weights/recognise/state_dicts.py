"""Finds a network's state_dict in what a checkpoint holds, and makes it exactly the network's own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mien_server.backends.checkpoint import layout_of
from mien_server.backends.weights_file import differences, first_names
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.recognised import Recognised

StateDict = dict[str, Tensor]

_DEPTH = 3
"""How deep wrappers may lie in each other: {"checkpoint": {"model": {"state_dict": …}}}."""

_HEADS = frozenset({"head", "kernel", "classifier", "margin", "softmax_fc", "arcface", "loss"})
"""First parts of the keys of a training's classification layer, which no embedding needs."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
"""How `differences` calls the types."""


@dataclass(frozen=True, slots=True)
class FoundState:
    """A state_dict within a checkpoint.

    Attributes:
        where: the wrappers and the prefix of keys around it (`state_dict: module.`), or "".
        state: its tensors, without that prefix.
        others: keys beside it that do not have the prefix.
    """

    where: str
    state: StateDict
    others: tuple[str, ...]


def find(contents: Mapping[Any, Any], signature: str) -> FoundState | None:
    """The state_dict that has a key of this name, in any wrapper and behind any prefix.

    Args:
        contents: of a checkpoint.
        signature: a key that only this kind of network has.

    Raises:
        WeightsError: there are several.
    """
    found = list(_search(contents, signature))
    if len(found) > 1:
        places = ", ".join(repr(each.where or "the top level") for each in found)
        raise WeightsError(
            f"it holds {len(found)} networks of that kind, at {places}: torch.save the one that you want"
        )
    return found[0] if found else None


def keys_of(contents: Mapping[Any, Any]) -> list[str]:
    """All names of tensors in a checkpoint, without the wrappers' own."""
    return [key for _, tensors in _mappings(contents) for key in tensors]


def fit(found: FoundState, architecture: str) -> tuple[StateDict, list[str]]:
    """The state_dict with exactly the keys, shapes and types of a network.

    A classification layer beside the network is left out, `num_batches_tracked`, which inference does not
    use, is filled in, and other floats become float32; the second value tells a person so.

    Raises:
        WeightsError: keys are missing, left over or misshaped, or values are of another type or not
            finite.
    """
    with torch.device("meta"):
        expected = find_family(architecture).network().state_dict()
    notes = [f"it was taken out of {found.where!r}"] if found.where else []
    beside = [key for key in found.others if not _is_head(key)]
    if beside:
        raise WeightsError(
            f"beside {architecture} at {found.where!r} it holds {len(beside)} other tensors"
            f" ({first_names(beside)}): torch.save the network's state_dict alone"
        )
    heads = [key for key in found.state if _is_head(key) and key not in expected]
    state = {key: value for key, value in found.state.items() if key not in heads}
    if heads := [*heads, *found.others]:
        notes.append(f"left out, as inference has no use for it: {first_names(heads)}")
    counters = {key: torch.tensor(0) for key in expected if key.endswith(".num_batches_tracked")}
    filled = {key: zero for key, zero in counters.items() if not _is_counter(state.get(key))}
    state |= filled
    if filled:
        notes.append(f"{len(filled)} counters num_batches_tracked were not there and are 0")

    described = {key: (list(value.shape), _type_of(value)) for key, value in state.items()}
    if problems := differences(described, layout_of(expected)):
        raise WeightsError(
            f"it looks like {architecture}, but its tensors are not exactly that network's"
            f" ({'; '.join(problems)}): bring the checkpoint of the unchanged network"
        )
    narrow = [key for key, value in state.items() if value.dtype is not expected[key].dtype]
    if narrow:
        types = ", ".join(sorted({str(state[key].dtype).removeprefix("torch.") for key in narrow}))
        notes.append(f"{len(narrow)} tensors were {types} and are float32 now")
    converted = {
        key: state[key].detach().to(value.dtype, copy=True).contiguous()
        for key, value in expected.items()
    }
    _check_values(converted)
    return converted, notes


def _search(contents: Mapping[Any, Any], signature: str) -> Iterator[FoundState]:
    for path, tensors in _mappings(contents):
        for key in tensors:
            if key != signature and not key.endswith(f".{signature}"):
                continue
            prefix = key.removesuffix(signature)
            yield FoundState(
                where=": ".join(part for part in (path, prefix) if part),
                state={
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                },
                others=tuple(name for name in tensors if not name.startswith(prefix)),
            )


def _mappings(
    contents: Mapping[Any, Any], path: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, StateDict]]:
    """Every mapping that holds tensors, and where it lies."""
    tensors = {
        key: value
        for key, value in contents.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield path, tensors
    for key, value in contents.items():
        if depth and isinstance(key, str) and isinstance(value, Mapping):
            yield from _mappings(value, f"{path}.{key}" if path else key, depth - 1)


def _is_head(key: str) -> bool:
    return key.removeprefix("module.").split(".")[0] in _HEADS


def _is_counter(value: Tensor | None) -> bool:
    return value is not None and value.dtype is torch.int64 and not value.shape


def _type_of(tensor: Tensor) -> str:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if tensor.is_quantized or not plain:
        return f"{tensor.device.type} {tensor.layout} {tensor.dtype}"
    return _DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _check_values(state: StateDict) -> None:
    bad = [key for key, value in state.items() if not _is_finite(value)]
    if bad:
        raise WeightsError(
            f"NaN or infinity in {len(bad)} of its tensors ({first_names(bad)}): the training or the"
            " download went wrong, take another checkpoint"
        )
    bad = [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]
    if bad:
        raise WeightsError(
            f"negative variances in {first_names(bad)}: the file is damaged, take another checkpoint"
        )


def _is_finite(value: Tensor) -> bool:
    # NaN spreads to both ends, and nothing of the tensor's size is made, unlike with `isfinite` alone.
    return bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())


def norm_entries(
    key: str, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> StateDict:
    """The entries of one batch norm in a state_dict."""
    return {
        f"{key}.weight": weight,
        f"{key}.bias": bias,
        f"{key}.running_mean": mean,
        f"{key}.running_var": variance,
        f"{key}.num_batches_tracked": torch.tensor(0),
    }


def for_pytorch(
    architecture: str,
    state: StateDict,
    notes: list[str],
    *,
    title: str,
    normalisation: Normalisation | None,
    license_: str,
    dimensions: int = 0,
) -> Recognised:
    """A state_dict that is exactly that of one of mien's own networks."""
    with torch.device("meta"):
        parameters = sum(each.numel() for each in find_family(architecture).network().parameters())
    return Recognised(
        title=title,
        backend="pytorch",
        architecture=architecture,
        weights=state,
        tensors=len(state),
        parameters=parameters,
        normalisation=normalisation,
        license=license_,
        dimensions=dimensions,
        notes=tuple(notes),
    )
