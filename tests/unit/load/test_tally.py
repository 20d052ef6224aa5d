import json
import math

import pytest

from mien import StageTiming
from mien_server.load.tally import Tally, markdown


def test_the_figures_of_a_tally() -> None:
    tally = Tally()
    for n in range(1, 101):
        tally.add(10.0, 10.0 + n / 1000)
    tally.add(10.0, 12.0, failure="QUEUE_FULL")

    summary = tally.summary()

    assert (summary.p50_ms, summary.p95_ms, summary.p99_ms) == pytest.approx((51, 96, 100))
    assert summary.calls == 101
    assert summary.error_rate == pytest.approx(1 / 101)
    assert summary.rate == pytest.approx(50), "a hundred answers within the two seconds"
    assert summary.failures == {"QUEUE_FULL": 1}
    assert tally.summary(seconds=4).rate == 25


def test_what_the_server_says_stands_beside() -> None:
    tally = Tally()
    stages = [
        StageTiming("decode.queue", 1.0),
        StageTiming("detect.queue", 2.0),
        StageTiming("detect.compute", 9.0, batch=4),
        StageTiming("embed.queue", 3.0),
        StageTiming("embed.compute", 9.0, batch=2),
    ]
    tally.add(0.0, 0.1, stages=stages)
    tally.add(0.0, 0.1)

    summary = tally.summary()

    assert summary.queue_ms == 6.0
    assert summary.batch == 3.0


def test_without_any_answer_there_are_no_percentiles() -> None:
    failed = Tally()
    failed.add(0.0, 1.0, failure="SERVER_UNREACHABLE")

    assert math.isnan(failed.summary().p99_ms)
    assert failed.summary().error_rate == 1
    assert Tally().summary().calls == 0
    assert Tally().summary().rate == 0


def test_tallies_of_several_processes_add_up() -> None:
    one, other = Tally(), Tally()
    one.add(1.0, 1.1, stages=[StageTiming("embed.queue", 5.0)])
    one.add(1.0, 1.2, failure="QUEUE_FULL")
    other.add(0.5, 2.5, failure="QUEUE_FULL")

    sent = json.loads(json.dumps(other.as_dict()))
    one.merge(Tally.of(sent))

    summary = one.summary()
    assert summary.calls == 3
    assert summary.failures == {"QUEUE_FULL": 2}
    assert summary.rate == pytest.approx(1 / 2.0)
    assert summary.queue_ms == 5.0


def test_an_empty_tally_goes_to_another_process_too() -> None:
    sent = json.loads(json.dumps(Tally().as_dict()))

    assert Tally.of(sent).summary().calls == 0


def test_the_table_says_what_failed_and_why() -> None:
    tally = Tally()
    tally.add(0.0, 0.5)
    tally.add(0.0, 1.0, failure="QUEUE_FULL")

    lines = markdown({"Embed": tally.summary(), "Verify": Tally().summary()}).splitlines()

    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        *("Embed", "2", "1.0", "500.0", "500.0", "500.0", "-", "-", "QUEUE_FULL 1"),
    ]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        *("Verify", "0", "0.0", "-", "-", "-", "-", "-", "none"),
    ]
