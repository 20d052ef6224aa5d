"""What a request holds is freed as soon as nobody needs it, without the cycle collector's help."""

import gc
import logging
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any
from weakref import ref

import pytest

from mien_server.scheduling.errors import Draining, Expired, RowFailed
from mien_server.scheduling.interface import Work
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import START, Lab, Model


class Photo:
    """A row whose end can be observed."""


class Faulty(Model):
    """Raises on every batch."""

    def compute(self, batch: list[Any]) -> list[Any]:
        raise ArithmeticError("cannot compute")


class Naming(Model):
    """Answers with something else than its rows."""

    def compute(self, batch: list[Any]) -> list[Any]:
        return ["a photo" for _ in batch]


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def submitted(lab: Lab, *, model: Model | None = None, **options: Any) -> tuple[Future[Any], Any]:
    photo = Photo()
    future = lab.slot(model=model, max_batch_size=2).submit(
        Work(rows=[photo], nbytes=100, **options)
    )
    return future, ref(photo)


def test_expiry_frees_the_rows_while_the_caller_still_holds_the_future() -> None:
    lab = Lab()
    future, photo = submitted(lab, deadline=START + 1)
    lab.wait(1.0)
    assert photo() is None
    assert isinstance(future.exception(timeout=0), Expired)
    assert lab.core.admission.budget.nbytes == 0


def test_cancellation_frees_the_rows() -> None:
    lab = Lab()
    future, photo = submitted(lab)
    assert future.cancel()
    assert photo() is None
    assert lab.core.admission.budget.nbytes == 0
    assert lab.slots[0].statistics().cancelled == 1
    lab.assert_empty()


def test_an_answer_frees_the_rows() -> None:
    lab = Lab()
    future, photo = submitted(lab, model=Naming())
    lab.run_all()
    assert photo() is None
    assert future.result().results == ["a photo"]


def test_a_failure_frees_the_rows_of_the_whole_batch_while_callers_hold_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # pytest would hold the log's tracebacks, and they the rows.
    caplog.set_level(logging.CRITICAL, logger="mien_server.scheduling.batch_run")
    lab = Lab()
    future, photo = submitted(lab, model=Faulty())
    other = Photo()
    neighbour = lab.slots[0].submit(Work(rows=[other]))
    other_ref = ref(other)
    del other
    lab.run_all()
    assert isinstance(future.exception(timeout=0), RowFailed)
    assert isinstance(neighbour.exception(timeout=0), RowFailed)
    assert photo() is None
    assert other_ref() is None


def test_closing_frees_the_rows_and_says_why() -> None:
    lab = Lab()
    future, photo = submitted(lab)
    lab.tell(lab.core.close())
    assert photo() is None
    with pytest.raises(Draining, match="the server is shutting down"):
        future.result(timeout=0)
    lab.assert_empty()
    assert lab.slots[0].statistics().failed == 1
    with pytest.raises(Draining):
        lab.slots[0].submit(Work(rows=[0], passed=1))


def test_a_running_request_cannot_be_cancelled_and_a_waiting_one_only_once() -> None:
    lab = Lab()
    slot = lab.slot()
    running, waiting = lab.submit_each(slot, [0, 1])
    assignment = lab.taken()
    assert not running.cancel()
    assert waiting.cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    lab.finish(assignment)
    assert not running.cancel()
    assert slot.statistics().cancelled == 1
    lab.assert_empty()


def test_waiting_for_several_futures_notices_a_cancelled_one() -> None:
    lab = Lab()
    future, other = lab.submit_each(lab.slot(), [0, 1])
    assert future.cancel()
    done, waiting = wait([future, other], timeout=0, return_when=FIRST_COMPLETED)
    assert (done, waiting) == ({future}, {other})


def test_cancelling_a_request_whose_first_rows_run_takes_out_the_rest() -> None:
    lab = Lab(FakeDevice(executors=2, cores=0))
    model = Model()
    slot = lab.slot(model=model, max_batch_size=2, split_rows=True)
    future = slot.submit(Work(rows=range(5), nbytes=50))
    running = lab.taken()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout=0)
    assert lab.take() is None
    lab.finish(running)
    assert model.runs == [[0, 1]]
    assert slot.statistics().succeeded == 0
    lab.assert_empty()
