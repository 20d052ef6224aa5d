import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.peers.__main__ import MARKS, write
from bench.peers.draw import draw
from bench.peers.measure import Cell, Results
from bench.peers.plan import Plan
from bench.peers.report import as_json, closed_table, markdown
from bench.peers.setup import ROOT, CannotRun
from bench.peers.workloads import EMBED, WORKLOADS


def cell(server: str, load: str, rate: float, p50: float = 10.0) -> Cell:
    return Cell(server, load, rate, p50, 2 * p50, server_cores=1.5, generator_cores=0.1)


def rows(table: str) -> list[list[str]]:
    lines = [table.splitlines()[0], *table.splitlines()[2:]]
    return [[text.strip() for text in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def results() -> Results:
    found = Results()
    found.closed["embed"] = [
        cell("mien", "1", 40.0),
        cell("by hand", "1", 50.0),
        cell("mien", "8", 150.0),
        cell("by hand", "8", 100.0),
        Cell("broken", "8", 0.0, math.nan, math.nan, 0.1, failures={"SERVER_UNREACHABLE": 9}),
    ]
    found.opened = [cell("mien", "80% of its own peak", 120.0)]
    found.analysed["sface"] = [cell("mien", "1", 200.0), cell("Triton, torch", "1", 100.0)]
    found.agreement["embed"] = {"mien": 1.0, "by hand": 0.9991}
    found.miss("Ray Serve: pip said no")
    return found


def test_the_last_column_compares_mien_with_the_best_of_the_others(results: Results) -> None:
    assert rows(closed_table(results.closed["embed"])) == [
        ["callers", "mien", "by hand", "broken", "mien / best"],
        ["1", "40.0 (10, 20)", "50.0 (10, 20)", "-", "0.80"],
        ["8", "150.0 (10, 20)", "100.0 (10, 20)", "none, 9 failed", "1.50"],
    ]


def test_the_median_of_the_rounds_counts() -> None:
    rounds = [cell("mien", "1", rate) for rate in (10.0, 90.0, 30.0)]

    assert rows(closed_table(rounds))[1] == ["1", "30.0 (10, 20)", "-"]


def test_a_peak_is_the_best_median(results: Results) -> None:
    results.closed["embed"] += [cell("mien", "8", rate) for rate in (110.0, 500.0)]

    assert results.peak("mien") == 150.0
    assert results.peak("nobody") == 0.0


def test_the_page_says_what_ran_and_what_did_not(results: Results) -> None:
    page = markdown(results)

    assert "### Embed of JPEG portraits, photos a second" in page
    assert "### SFace by perf_analyzer, crops a second" in page
    assert "Embed of JPEG portraits, open loop" in page
    assert "broken: SERVER_UNREACHABLE 9" in page
    assert "Agreement with mien's answers, at worst: by hand 0.9991." in page
    assert "- Ray Serve: pip said no" in page


def test_json_has_every_round_and_no_nan(results: Results) -> None:
    values = json.loads(as_json(results), parse_constant=lambda name: pytest.fail(name))

    assert [found["server"] for found in values["closed"]["embed"]] == [
        *("mien", "by hand", "mien", "by hand", "broken"),
    ]
    assert values["closed"]["embed"][4]["p50_ms"] is None


def test_the_picture_has_a_line_for_each_server_that_answered(results: Results) -> None:
    picture = ET.fromstring(draw(results.closed["embed"], "Embed", "photos"))  # noqa: S314

    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    texts = [text.text for text in picture.findall("{http://www.w3.org/2000/svg}text")]
    assert len(lines) == 2
    assert {"Embed", "photos a second", "mien", "by hand", "1", "8"} <= set(texts)


def test_files_are_written_even_if_nothing_was_measured(tmp_path: Path) -> None:
    write(Results(), tmp_path, None)

    assert {path.name for path in tmp_path.iterdir()} == {"peers.md", "peers.json", "peers.svg"}


def test_a_page_gets_the_tables_between_its_marks(results: Results, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")

    write(results, tmp_path, page)

    text = page.read_text()
    assert text.startswith(f"before\n{MARKS[0]}\n![Throughput against latency](images/peers.svg)")
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    assert "old" not in text
    assert "by hand 0.9991" in text
    assert (tmp_path / "images" / "peers.svg").exists()


def test_a_page_without_marks_is_left_alone(results: Results, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")

    with pytest.raises(CannotRun, match="has no <!--"):
        write(results, tmp_path, page)

    assert page.read_text() == "no marks"


def test_the_page_of_benchmarks_has_the_marks() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()

    assert text.index(MARKS[0]) < text.index(MARKS[1])


@pytest.mark.parametrize(("quick", "minutes"), [(True, 4.0), (False, 18.0)])
def test_all_cells_fit_into_the_time(quick: bool, minutes: float) -> None:
    plan = Plan(minutes, WORKLOADS, quick=quick, analyse=True, servers=6)

    closed = sum(len(plan.callers(w)) * plan.rounds(w) for w in WORKLOADS) * 6 * plan.cell
    opened = 4 * 6 * plan.open_seconds
    # Beside its windows, perf_analyzer takes a second or so.
    analysed = 6 * len(plan.analysed_callers()) * (plan.analysis_seconds + 1)
    assert closed + opened + analysed <= minutes * 60
    assert plan.cell >= 0.9
    assert not plan.is_over


def test_one_workload_alone_is_not_drawn_out() -> None:
    plan = Plan(18.0, (EMBED,), quick=True, analyse=False, servers=2)

    assert plan.cell == 4.0
