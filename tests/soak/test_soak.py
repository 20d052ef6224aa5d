"""What a soak is judged by, and its picture. The soak itself is `make soak`."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.soak.clients import Tallied
from tests.soak.picture import draw
from tests.soak.run import PARTS, Held, Soak


def steady(minutes: float = 30) -> Soak:
    rests = [Held(minutes * (n + 1) / PARTS, 400 + n % 3, 38, 23) for n in range(PARTS)]
    return Soak(Tallied(), looks=[replace(each, milliseconds=30.0) for each in rests], rests=rests)


def test_soak_in_which_nothing_grows_is_fine() -> None:
    assert steady().judged() == []
    warming = steady()
    warming.rests[0] = replace(warming.rests[0], mib=200, threads=20, descriptors=10)
    assert warming.judged() == []


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"mib": 415}, "memory: 402 MiB at most rests, 415 at one"),
        ({"mib": 380}, "memory: 401 MiB at most rests, 380 at one"),
        ({"threads": 42}, "threads: 38 at first, 42 later"),
        ({"descriptors": 27}, "descriptors: 23 at first, 27 later"),
    ],
)
def test_what_grows_is_named(later: dict[str, int], said: str) -> None:
    soak = steady()
    soak.rests[9:] = [replace(each, **later) for each in soak.rests[9:]]
    (found,) = soak.judged()
    assert said in found


def test_lost_calls_and_what_went_wrong_count_in_any_soak() -> None:
    soak = steady(2)
    soak.rests[7:] = [
        replace(each, mib=600) for each in soak.rests[7:]
    ]  # too short to say anything of memory
    soak.tallied.lost.append("Embed: UNAVAILABLE")
    soak.tallied.wrong.append("stranger: OK")
    soak.wrong.append("Traceback")
    assert soak.judged() == ["Traceback", "stranger: OK", "lost: Embed: UNAVAILABLE"]
    soak.rests.pop()
    assert f"of {PARTS} parts" in soak.judged()[-1]


def test_few_refusals_of_full_queues_are_no_loss_and_many_are_wrong() -> None:
    soak = steady()
    soak.tallied.answers.update({"good: OK": 1000, "good: RESOURCE_EXHAUSTED QUEUE_FULL": 10})
    assert soak.judged() == []
    soak.tallied.answers["good: RESOURCE_EXHAUSTED QUEUE_FULL"] = 30
    assert soak.judged() == ["30 good calls were refused at the door"]


def test_picture_has_a_dot_for_each_rest_and_is_small() -> None:
    picture = draw(steady(), "30 minutes")
    dots = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle")  # noqa: S314
    assert len(list(dots)) == 3 * PARTS
    assert len(picture) < 20_000
