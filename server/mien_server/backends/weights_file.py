"""What every backend does with a file of weights before it knows what is in it."""

import os
from collections.abc import Sequence
from pathlib import Path

from mien_server.errors import OperatorError

GRAPH = "graph.onnx"
"""The file beside a version's weights that says what their network computes, for backend openvino."""

_NAMES_SHOWN = 8
_MAX_BYTES = 1 << 30
"""The largest public face network has 0.26 GB."""


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


def first_names(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
