"""Writes measured thresholds down, beside the weights that they were measured with."""

import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.metrics import Operation
from mien_server.repository.folders import THRESHOLDS
from mien_server.repository.thresholds import Thresholds, write_thresholds
from mien_server.repository.versions import ReadyModel

_SCALE = 10_000
"""Thresholds have four digits."""


def calibrate(
    folder: Path,
    model: ReadyModel,
    threshold: float,
    operations: Sequence[Operation],
    *,
    rule: str,
    data: str,
    genuine: int,
    impostor: int,
) -> Path:
    """Writes `thresholds.json` of a version, in place of one that is there. No other version is touched.

    Args:
        folder: the version folder.
        model: what was measured.
        threshold: from which two faces match, rounded up to four digits.
        operations: the rows of the table. Those without a threshold are left out.
        rule: how the threshold was chosen.
        data: the name of the labelled pairs.
        genuine, impostor: how many of one and of two people were compared.

    Returns:
        the file.

    Raises:
        EvaluationError: it cannot be written.
    """
    found = Thresholds(
        match_threshold=_rounded_up(threshold),
        thresholds_by_far=tuple(
            (each.far, _rounded_up(each.threshold))
            for each in operations
            if each.threshold is not None
        ),
        rule=rule,
        data=data,
        genuine=genuine,
        impostor=impostor,
        version=model.version,
        fingerprint=model.fingerprint,
        created=datetime.now(UTC),
    )
    try:
        write_thresholds(folder, found)
    except OSError as error:
        raise EvaluationError(f"{folder / THRESHOLDS} cannot be written: {error}") from error
    return folder / THRESHOLDS


def check_writable(folder: Path) -> None:
    """Finds out, before thresholds are measured for it, whether `calibrate` can write them.

    Raises:
        EvaluationError: it cannot.
    """
    if not os.access(folder, os.W_OK):
        raise EvaluationError(f"{folder / THRESHOLDS} cannot be written: the folder may not be")


def _rounded_up(threshold: float) -> float:
    return math.ceil(threshold * _SCALE - 1e-9) / _SCALE
