from pathlib import Path

import pytest

from loadtest.slo import Objective, broken_objectives, read_objectives
from mien_server.load.tally import Summary, Tally


def measured(milliseconds: float, *, failed: int = 0, seconds: float = 1.0) -> Summary:
    tally = Tally()
    for _ in range(100 - failed):
        tally.add(0.0, milliseconds / 1000)
    for _ in range(failed):
        tally.add(0.0, milliseconds / 1000, failure="QUEUE_FULL")
    return tally.summary(seconds)


def written(folder: Path, text: str) -> Path:
    path = folder / "slo.toml"
    path.write_text(text)
    return path


def test_objectives_are_read_by_call(tmp_path: Path) -> None:
    path = written(
        tmp_path, "[Embed]\np99_ms = 150\nerror_rate = 0.01\n[all]\nrate = 40.5  # a second\n"
    )

    assert read_objectives(path) == {
        "Embed": Objective(p99_ms=150, error_rate=0.01),
        "all": Objective(rate=40.5),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[Recognise]\np99_ms = 1\n",
            "there is no call Recognise, only Detect, Embed, Verify, all",
        ),
        ("[Embed]\np98_ms = 1\n", r"\[Embed\] takes p99_ms, error_rate, rate"),
        ('[Embed]\nrate = "many"\n', r"\[Embed\] rate must be a number from 0 on, not 'many'"),
        ("[Embed]\nrate = -1\n", "must be a number from 0 on"),
        ("[Embed]\nrate = true\n", "must be a number from 0 on"),
        ("[Embed]\np99_ms = nan\n", "must be a number from 0 on"),
        ("Embed = 3\n", r"\[Embed\] takes"),
        ("[Embed\n", "slo.toml"),
    ],
)
def test_what_is_no_objective_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_objectives(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        read_objectives(tmp_path / "nowhere.toml")


def test_what_is_kept_and_what_is_broken() -> None:
    objective = Objective(p99_ms=100, error_rate=0.05, rate=50)

    assert objective.broken(measured(100, failed=5)) == []
    assert objective.broken(measured(120)) == ["p99 120.0 ms, at most 100 ms allowed"]
    assert objective.broken(measured(50, failed=6)) == ["error rate 0.0600, at most 0.05 allowed"]
    assert objective.broken(measured(50, seconds=4)) == ["25.0 answers/s, at least 50 wanted"]
    assert Objective().broken(measured(10_000, failed=99)) == []


def test_no_answer_keeps_no_percentile() -> None:
    assert Objective(p99_ms=1000).broken(measured(1, failed=100)) == [
        "p99 no answer, at most 1000 ms allowed"
    ]


def test_breaches_carry_the_name_of_the_call() -> None:
    objectives = {"Embed": Objective(p99_ms=10), "Verify": Objective(rate=1)}

    assert broken_objectives(objectives, {"Embed": measured(20)}) == [
        "Embed: p99 20.0 ms, at most 10 ms allowed",
        "Verify: no call was made",
    ]
