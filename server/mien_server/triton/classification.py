"""Triton's classification extension: of an output the largest values, with their places and labels."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.types import ArrayF32

PARAMETER = "classification"
"""Of a requested output: how many classes of each row are wanted."""


def class_count(output: Any) -> int:
    """How many classes a requested output is to be answered as; 0: as it is.

    Raises:
        InvalidRequest: the parameter is no whole number from 1 on.
    """
    if PARAMETER not in output.parameters:
        return 0
    parameter = output.parameters[PARAMETER]
    choice = parameter.WhichOneof("parameter_choice")
    count = int(getattr(parameter, choice)) if choice in ("int64_param", "uint64_param") else 0
    if count < 1:
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            f"output {output.name!r} has the parameter {PARAMETER!r}: it must be a whole number from 1 on.",
            field=f"parameters.{PARAMETER}",
        )
    return count


async def classified(
    outputs: Mapping[str, ArrayF32],
    counts: Mapping[str, int],
    labels: Mapping[str, Sequence[str]],
    pool: PicturePool,
) -> dict[str, NDArray[Any]]:
    """Outputs as they were asked for: those of classes as `top_classes`, the others as they are.

    Args:
        outputs: by name, rows first.
        counts: of each, how many classes; 0: none.
        labels: of a row's values, where an output has them.
    """
    answers: dict[str, NDArray[Any]] = {}
    for name, array in outputs.items():
        if counts[name]:
            # Not on the event loop: a row may have hundreds of values, and each becomes a text.
            work = partial(top_classes, array, counts[name], labels.get(name, ()))
            answers[name] = await pool.finish(work)
        else:
            answers[name] = array
    return answers


def top_classes(values: ArrayF32, count: int, labels: Sequence[str]) -> NDArray[np.object_]:
    """The largest values of each row as `value:place`, or `value:place:label`, the largest first.

    Args:
        values: [n, ...]; of a row they count in their order, and of equals the first comes first.
        count: how many of a row, at least 1; all of them if it has fewer.
        labels: one for each value of a row, or none.

    Returns:
        UTF-8, [n, k]. The values have six decimals, as Triton's.
    """
    rows = values.reshape(len(values), -1)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    answer = np.empty(order.shape, np.object_)
    for (row, rank), place in np.ndenumerate(order):
        label = f":{labels[int(place)]}" if labels else ""
        answer[row, rank] = f"{rows[row, place]:f}:{place}{label}".encode()
    return answer
