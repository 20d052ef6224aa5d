"""docs/deployment.md and docs/upgrading.md: their sums, figures and fingerprints are true."""

import re
import tomllib
from pathlib import Path

import pytest

from mien_server.limits import worst_case
from mien_server.repository.listing import list_repository
from mien_server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT, UPGRADING, BENCHMARKS = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("deployment", "upgrading", "benchmarks")
)
LIBRARIES = 400 << 20


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table whose head begins with a cell, as they stand there."""
    table = re.search(rf"^\| {re.escape(heading)}.*\n\|[-| ]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


@pytest.mark.parametrize("row", rows(DEPLOYMENT, "`max_arriving_requests`"))
def test_memory_at_worst_is_the_sum_that_the_page_says(row: list[str]) -> None:
    arriving, message, pending, connections, told = map(int, row)
    settings = Settings(
        max_arriving_requests=arriving,
        max_message_bytes=message,
        max_image_bytes=min(message, Settings().max_image_bytes),
        max_pending_bytes=pending,
    )
    worst = LIBRARIES + sum(worst_case(settings, connections).values())
    assert told == -(-worst // 2**20), "rounded up"


def test_the_first_row_is_that_of_the_defaults() -> None:
    arriving, message, pending, *_ = map(int, rows(DEPLOYMENT, "`max_arriving_requests`")[0])
    default = Settings()
    assert default.max_arriving_requests is None
    assert (arriving, message, pending) == (
        default.max_pending_requests,
        default.max_message_bytes,
        default.max_pending_bytes,
    )


@pytest.mark.parametrize("row", rows(DEPLOYMENT, "what | callers"))
def test_figures_of_sizing_are_those_measured(row: list[str]) -> None:
    what, callers, rate, p50, p99 = row
    section = re.search(
        rf"^### {re.escape(what)}, .*?(?=^###)", BENCHMARKS, re.MULTILINE | re.DOTALL
    )
    assert section is not None
    assert re.search(
        rf"^\| {callers} +\| {re.escape(rate)} \({p50}, {p99}\)", section[0], re.MULTILINE
    )


def test_fingerprints_of_the_default_models_are_those_of_the_page(
    model_repository_path: Path,
) -> None:
    told = {
        (name.strip("`"), int(n), made.strip("`")) for name, n, made in rows(UPGRADING, "model")
    }
    listed = list_repository([model_repository_path])
    found = {(each.model, each.version, each.fingerprint) for each in listed if each.fingerprint}
    assert told == found, "embeddings that users have stored compare no more: say so, if it must be"


def test_opencv_5_is_not_taken() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (opencv,) = (
        each for each in project["optional-dependencies"]["server"] if each.startswith("opencv")
    )
    assert opencv.endswith(",<5")
    assert "opencv-python-headless<5" in UPGRADING
