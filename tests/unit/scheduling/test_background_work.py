"""Work that nobody waits for (`BACKGROUND`) goes after all other, and costs its slot no fair share."""

import pytest

from mien_server.scheduling.errors import Draining
from mien_server.scheduling.interface import BACKGROUND, Work
from tests.unit.scheduling.virtual import START, Lab


def test_it_goes_after_all_calls_of_any_slot() -> None:
    lab = Lab()
    shadow, other = lab.slot("shadow"), lab.slot("other")
    shadow.submit(Work(rows=["copy"], passed=BACKGROUND, arrived=START - 9, deadline=START + 1))
    shadow.submit(Work(rows=["call"]))
    other.submit(Work(rows=["other call"], arrived=START + 1))
    assert lab.run_all() == [["call"], ["other call"], ["copy"]]


def test_it_is_not_charged_to_the_slot() -> None:
    lab = Lab()
    slot = lab.slot()
    slot.submit(Work(rows=["copy"], passed=BACKGROUND))
    lab.finish(lab.taken("cpu"), after=1.0)
    assert slot.state.share["cpu"] == 0.0


def test_it_is_refused_while_the_server_drains() -> None:
    lab = Lab()
    slot = lab.slot()
    lab.core.drain()
    with pytest.raises(Draining):
        slot.submit(Work(rows=["copy"], passed=BACKGROUND))
