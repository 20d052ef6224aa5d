"""What every backend does with a file of weights before it knows what is in it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, deserialize

from mien_server.errors import OperatorError

GRAPH = "graph.onnx"
"""The file beside a version's weights that says what their network computes, for backend openvino."""

_NAMES_SHOWN = 8
_MAX_BYTES = 1 << 30
"""The largest public face network has 0.26 GB."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of a safetensors file that stand for floats. Quantised weights would need their scales."""
_WHOLE = "I64"

Layout: TypeAlias = Mapping[str, tuple[tuple[int, ...], bool]]
"""The tensors of a network's state_dict by key: the shape of each, and whether it holds floats."""


class LoadError(OperatorError):
    """A version that cannot be loaded; the message says what is wrong with it and what to do."""


def read_weights(path: Path) -> bytes:
    """A file of weights, whole. It is not mapped: whoever shortened a mapped file would end the process.

    Raises:
        LoadError: it is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise LoadError(f"{path} has {size} bytes; at most {_MAX_BYTES} are read")
        return file.read(size)


def read_tensors(path: Path, expected: Layout, architecture: str) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file, by key: `shape`, `dtype` ("F32") and `data`, the bytes.

    Each has its bytes for itself.

    Raises:
        LoadError: the file is unreadable or no safetensors file, or its keys, shapes or types are not exactly
            the expected ones.
    """
    try:
        parts = dict(deserialize(read_weights(path)))  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"{path} cannot be read as safetensors ({error}): import the checkpoint again"
        ) from error
    found = {key: (part["shape"], part["dtype"]) for key, part in parts.items()}
    if problems := differences(found, expected):
        raise LoadError(
            f"{path} does not hold the weights of architecture {architecture!r}"
            f" ({'; '.join(problems)}): check `architecture` in config.pbtxt, or import the"
            " checkpoint again"
        )
    return parts


def differences(found: Mapping[str, tuple[list[int], str]], expected: Layout) -> list[str]:
    """What distinguishes a checkpoint from a network: one sentence per kind, with counts and names.

    Args:
        found: shape and safetensors' name of the type ("F32") of each tensor, by key.
        expected: the network's.
    """
    common = [key for key in expected if key in found]
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshaped": [
            f"{key} is {found[key][0]}, must be {list(expected[key][0])}"
            for key in common
            if found[key][0] != list(expected[key][0])
        ],
        "of another type": [
            f"{key} is {found[key][1]}"
            for key in common
            if found[key][1] not in (_FLOATS if expected[key][1] else {_WHOLE})
        ],
    }
    return [f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds.items() if names]


def first_names(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
