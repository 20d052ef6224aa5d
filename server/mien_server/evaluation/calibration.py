"""Writes measured thresholds into a model's config.pbtxt, and leaves the rest of the text as it is."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.metrics import Operation
from mien_server.repository.config.editing import replace_text, with_parameter
from mien_server.repository.config.pbtxt import ConfigError, ConfigText

_MARK = "# calibrated"
_DIGITS = 4


def calibrate(config: Path, threshold: float, operations: Sequence[Operation], note: str) -> None:
    """Writes `match_threshold` and the table `thresholds_by_far`, with a comment on where they come from.

    A file that cannot be written, or does not parse afterwards, is left as it was.

    Args:
        config: the model's config.pbtxt.
        threshold: from which two faces match, rounded up to four digits.
        operations: the rows of the table. Those without a threshold are left out.
        note: what the comment says, in one line.

    Raises:
        EvaluationError: the file cannot be read or written, or has a parameter without a value.
    """
    table = ", ".join(
        f"{each.far:g}: {_rounded_up(each.threshold)}"
        for each in operations
        if each.threshold is not None
    )
    values = {"match_threshold": _rounded_up(threshold)}
    if table:
        values["thresholds_by_far"] = table
    edited = _edited(config, values, note)
    try:
        replace_text(config, edited)
    except OSError as error:
        raise EvaluationError(f"{config} cannot be calibrated: {error}") from error


def check_editable(config: Path) -> None:
    """Finds out, before thresholds are measured for it, whether `calibrate` can write them.

    Raises:
        EvaluationError: as `calibrate` would raise it.
    """
    folder = config.resolve().parent
    if not os.access(folder, os.W_OK):
        raise EvaluationError(f"{config} cannot be calibrated: {folder} may not be written")
    _edited(config, dict.fromkeys(("match_threshold", "thresholds_by_far"), "…"), "")


def _edited(config: Path, values: dict[str, str], note: str) -> str:
    try:
        return with_parameters(ConfigText.read(config.resolve()), values, note).source
    except ConfigError as error:
        raise EvaluationError(f"{config} cannot be calibrated: {error}") from error


def with_parameters(text: ConfigText, values: Mapping[str, str], note: str) -> ConfigText:
    """A config with some parameters set: changed where they stand, or added at its end.

    Args:
        values: the parameters' values, without characters that would have to be escaped.
        note: follows each of them as a comment, in place of an older such comment.

    Raises:
        ConfigError: a parameter stands there without a value.
    """
    comment = f"  {_MARK} {' '.join(note.split())}"
    for key, value in values.items():
        text = with_parameter(text, key, value)
        _, end = text.find(("parameters", key, "string_value"))[0].span
        rest, newline, below = text.source[end:].partition("\n")
        rest = rest.split(_MARK)[0].rstrip()
        text = ConfigText(text.path, f"{text.source[:end]}{rest}{comment}{newline}{below}")
    return text


def _rounded_up(threshold: float) -> str:
    scale = 10**_DIGITS
    return f"{math.ceil(threshold * scale - 1e-9) / scale:.{_DIGITS}f}"
