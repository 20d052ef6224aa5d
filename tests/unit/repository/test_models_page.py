"""docs/models.md lists what a config.pbtxt may say: every field, every parameter, nothing else."""

import re
from pathlib import Path

import pytest

from mien_server.models.families import families
from mien_server.repository.config.fields import _WITHOUT_EFFECT, ENSEMBLE_FIELDS, MODEL_FIELDS
from mien_server.repository.config.model import _PRECISIONS, known_parameters

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def table(title: str) -> dict[str, str]:
    """The rows of a table by the names in their first cells."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |")) + 2
    rows: dict[str, str] = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            return rows
        _, names, meaning, _ = line.split("|")
        rows |= dict.fromkeys(re.findall(r"`([^`]+)`", names), meaning)
    raise AssertionError(f"the table {title} does not end")


def test_the_page_lists_every_field() -> None:
    ignored = {".".join(path) for path in _WITHOUT_EFFECT}
    assert set(table("field")) == {*MODEL_FIELDS, *ENSEMBLE_FIELDS, *ignored}


def test_the_page_lists_every_parameter() -> None:
    assert set(table("parameter")) == known_parameters()


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ("architecture", set(families())),
        ("precision", {value for values in _PRECISIONS.values() for value in values}),
    ],
)
def test_the_page_lists_every_value(parameter: str, values: set[str]) -> None:
    assert set(re.findall(r"`([^`]+)`", table("parameter")[parameter])) == values
