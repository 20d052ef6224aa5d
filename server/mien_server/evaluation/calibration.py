"""Writes measured thresholds into a model's config.pbtxt, and leaves the rest of the text as it is."""

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.metrics import Operation
from mien_server.repository.config.pbtxt import ConfigError, ConfigText

_MARK = "# calibrated"
_DIGITS = 4

_STRING = r'"(?:\\.|[^"\\\n])*"' + "|" + r"'(?:\\.|[^'\\\n])*'"
_COMMENT = re.compile(rf"(?P<string>{_STRING})|#[^\n]*")
_KEY = re.compile(rf"\bkey\s*:\s*(?P<key>{_STRING})")
_VALUE = re.compile(rf"\bstring_value\s*:\s*(?P<value>{_STRING})")


def calibrate(config: Path, threshold: float, operations: Sequence[Operation], note: str) -> None:
    """Writes `match_threshold` and the table `thresholds_by_far`, with a comment on where they come from.

    A file that cannot be written, or does not parse afterwards, is left as it was.

    Args:
        config: the model's config.pbtxt.
        threshold: from which two faces match, rounded up to four digits.
        operations: the rows of the table. Those without a threshold are left out.
        note: what the comment says, in one line.

    Raises:
        EvaluationError: the file cannot be read or written, or its parameters are laid out in a way that
            cannot be edited.
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
    path = config.resolve()
    try:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(edited, encoding="utf-8")
        shutil.copymode(path, partial)
        partial.replace(path)
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
    path = config.resolve()
    try:
        text = path.read_text(encoding="utf-8")
        wanted = _parameters(path, text) | values
    except (OSError, ConfigError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{config} cannot be calibrated: {error}") from error
    edited = with_parameters(text, values, note)
    if not _says(path, edited, wanted):
        written = "; ".join(f'{key} "{value}"' for key, value in values.items())
        raise EvaluationError(f"{config} is laid out in an unusual way, write by hand: {written}")
    return edited


def with_parameters(text: str, values: Mapping[str, str], note: str) -> str:
    """The text of a config.pbtxt with some parameters set: changed where they stand, or added at its end.

    Args:
        values: the parameters' values, without characters that would have to be escaped.
        note: follows each of them as a comment, in place of an older such comment.
    """
    comment = f"  {_MARK} {' '.join(note.split())}"
    for key, value in values.items():
        span = _find(text, key)
        if span is None:
            text = text if text.endswith("\n") else f"{text}\n"
            text += (
                f'\nparameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}{comment}\n'
            )
        else:
            start, end = span
            rest, newline, below = text[end:].partition("\n")
            rest = rest.split(_MARK)[0].rstrip()
            text = f'{text[:start]}"{value}"{rest}{comment}{newline}{below}'
    return text


def _find(text: str, key: str) -> tuple[int, int] | None:
    """Finds where the value of a parameter stands, quotes included."""
    plain = _COMMENT.sub(lambda found: found["string"] or " " * len(found[0]), text)
    keys = list(_KEY.finditer(plain))
    for number, found in enumerate(keys):
        if found["key"][1:-1] == key:
            end = keys[number + 1].start() if number + 1 < len(keys) else len(plain)
            value = _VALUE.search(plain, found.end(), end)
            return value.span("value") if value else None
    return None


def _parameters(path: Path, text: str) -> dict[str, str]:
    message = ConfigText(path, text).message
    return {key: value.string_value for key, value in message.parameters.items()}


def _says(path: Path, text: str, parameters: Mapping[str, str]) -> bool:
    try:
        return _parameters(path, text) == parameters
    except ConfigError:
        return False


def _rounded_up(threshold: float) -> str:
    scale = 10**_DIGITS
    return f"{math.ceil(threshold * scale - 1e-9) / scale:.{_DIGITS}f}"
