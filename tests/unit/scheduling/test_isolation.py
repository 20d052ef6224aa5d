"""A batch that raises or kills its executor: only the guilty rows fail."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from mien_server.scheduling.errors import RowFailed, Unavailable
from mien_server.scheduling.interface import Work
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import Lab, Model, answers


def test_only_the_guilty_row_of_a_batch_fails_and_every_row_runs_singly_once() -> None:
    lab = Lab()
    model = Model(fails={"bad"})
    slot = lab.slot(model=model, max_batch_size=4)
    first, bad, last = lab.submit_each(slot, ["first", "bad", "last"])
    lab.run_all()
    assert (answers(first), answers(last)) == (["first"], ["last"])
    with pytest.raises(RowFailed, match="model version 1 failed on this input"):
        bad.result(timeout=0)
    assert model.runs == [["first", "bad", "last"], ["first"], ["bad"], ["last"]]
    assert first.result().timing.batch_rows == 1
    statistics = slot.statistics()
    assert (statistics.succeeded, statistics.failed, statistics.rows) == (2, 1, 2)
    assert (statistics.batches, statistics.isolated) == (1, 1)
    lab.assert_empty()


def test_a_lone_row_that_raises_is_not_run_again() -> None:
    lab = Lab()
    model = Model(fails={"bad"})
    bad = lab.slot(model=model).submit(Work(rows=["bad"]))
    lab.run_all()
    assert isinstance(bad.exception(timeout=0), RowFailed)
    assert model.runs == [["bad"]]


def test_a_request_of_several_rows_fails_as_a_whole_and_takes_no_other_with_it() -> None:
    lab = Lab()
    slot = lab.slot(model=Model(fails={"bad"}), max_batch_size=8)
    several = slot.submit(Work(rows=["good", "bad", "good too"]))
    other = slot.submit(Work(rows=["other"]))
    lab.run_all()
    assert isinstance(several.exception(timeout=0), RowFailed)
    assert answers(other) == ["other"]
    lab.assert_empty()


def test_the_rest_of_a_split_request_is_not_run_once_a_row_has_failed() -> None:
    lab = Lab()
    model = Model(fails={"bad"})
    slot = lab.slot(model=model, max_batch_size=2, split_rows=True)
    split = slot.submit(Work(rows=["bad", 1, 2, 3]))
    other = slot.submit(Work(rows=["other"]))
    lab.run_all()
    assert isinstance(split.exception(timeout=0), RowFailed)
    assert answers(other) == ["other"]
    assert model.runs == [["bad", 1], ["bad"], [1], ["other"]]
    lab.assert_empty()


def test_a_failure_is_logged_with_its_traceback_under_the_id_that_the_caller_gets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = Lab()
    slot = lab.slot(model=Model(fails={"raises"}, kills={"kills"}))
    with caplog.at_level(logging.ERROR):
        futures = lab.submit_each(slot, ["raises", "kills"])
        lab.run_all()
    for future, error in zip(futures, (ArithmeticError, SystemExit), strict=True):
        failure = future.exception(timeout=0)
        assert isinstance(failure, RowFailed)
        (record,) = [r for r in caplog.records if vars(r).get("incident") == failure.incident]
        assert (vars(record)["model"], vars(record)["version"]) == ("model", 1)
        assert record.exc_info is not None
        assert record.exc_info[0] is error


def test_a_batch_that_raised_is_logged_before_its_rows_run_singly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = Lab()
    lab.submit_each(lab.slot(model=Model(fails={"bad"}), max_batch_size=2), ["good", "bad"])
    lab.run_all()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == (
        "a batch of 2 rows of model version 1 raised ArithmeticError('cannot compute');"
        " its rows run singly"
    )


class Miscounting(Model):
    """Returns one result too few for batches of several rows."""

    def split(self, outputs: list[Any], rows: Sequence[Any]) -> list[Any]:
        return outputs[1:] if len(outputs) > 1 else outputs


def test_a_model_that_loses_results_mixes_up_no_answers() -> None:
    lab = Lab()
    slot = lab.slot(model=Miscounting(), max_batch_size=4)
    futures = lab.submit_each(slot, range(3))
    lab.run_all()
    assert [answers(future) for future in futures] == [[0], [1], [2]]


def test_a_batch_whose_executor_died_is_retried_once_and_the_guilty_row_fails_alone() -> None:
    lab = Lab()
    model = Model(kills={"killer"})
    slot = lab.slot(model=model, max_batch_size=4)
    first, killer, last = lab.submit_each(slot, ["first", "killer", "last"])
    lab.run_all()
    assert (answers(first), answers(last)) == (["first"], ["last"])
    assert isinstance(killer.exception(timeout=0), RowFailed)
    assert model.runs == [["first", "killer", "last"], ["first"], ["killer"], ["last"]]
    statistics = slot.statistics()
    assert (statistics.executor_deaths, statistics.failed) == (2, 1)
    assert not slot.broken
    lab.assert_empty()


def test_a_slot_in_which_executors_keep_dying_breaks_and_refuses_what_waits() -> None:
    lab = Lab(FakeDevice(executors=2, cores=0))
    slot = lab.slot(model=Model(kills={"killer"}))
    killers = lab.submit_each(slot, ["killer"] * 3)
    waiting = slot.submit(Work(rows=["waiting"]))
    lab.run_all()
    assert all(isinstance(killer.exception(timeout=0), RowFailed) for killer in killers)
    assert slot.broken == "6 executors in a row died in it, the last of SystemExit('killed')"
    reason = "model version 1 is unhealthy: 6 executors in a row died"
    with pytest.raises(Unavailable, match=reason):
        waiting.result(timeout=0)
    with pytest.raises(Unavailable, match=reason):
        slot.submit(Work(rows=["new"]))
    lab.assert_empty()


def test_a_success_in_between_starts_the_count_of_deaths_anew() -> None:
    lab = Lab()
    slot = lab.slot(model=Model(kills={"killer"}))
    for _ in range(10):
        lab.submit_each(slot, ["killer", "killer", "good"])
        lab.run_all()
    assert not slot.broken
    assert slot.statistics().executor_deaths == 40
    assert slot.statistics().succeeded == 10


def test_a_slot_bears_five_deaths_at_first_and_after_each_success_and_breaks_at_the_sixth() -> None:
    lab = Lab()
    slot = lab.slot(model=Model(kills={"killer"}), max_batch_size=2)
    for rows in (["killer", "killer"], ["killer"], ["good"], ["killer", "killer"], ["killer"]):
        lab.submit_each(slot, rows)
        lab.run_all()
    assert slot.statistics().executor_deaths == 2 * (3 + 2)
    assert not slot.broken
    lab.submit(slot, ["killer"])
    lab.run_all()
    assert slot.broken.startswith("6 executors in a row")


def test_deaths_in_one_slot_break_no_other() -> None:
    lab = Lab()
    deadly = lab.slot("deadly", model=Model(kills={"killer"}))
    healthy = lab.slot("healthy")
    lab.submit_each(deadly, ["killer"] * 5)
    fine = healthy.submit(Work(rows=["fine"]))
    lab.run_all()
    assert deadly.broken
    assert not healthy.broken
    assert answers(fine) == ["fine"]


def test_what_failed_says_nothing_about_how_long_batches_take() -> None:
    lab = Lab()
    slot = lab.slot(model=Model(fails={"bad"}), max_batch_size=2)
    slot.submit(Work(rows=["bad"]))
    lab.finish(lab.taken(), after=9.0)
    lab.submit_each(slot, ["bad", "good"])
    lab.finish(lab.taken(), after=9.0)
    assert slot.expected_compute(1) == slot.expected_compute(2) == 0.0
