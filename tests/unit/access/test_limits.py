"""What one caller may ask for: buckets that fill by the clock, calls at once, and bounded memory."""

import time

import pytest

from mien_server.access import limits as module
from mien_server.access.callers import Caller
from mien_server.access.limits import CallerLimits
from mien_server.access.roles import CallerRole
from mien_server.errors import CallerLimit

ROLES = frozenset({CallerRole.INFER})
A, B = Caller("a", ROLES, "key mien_1"), Caller("b", ROLES, "key mien_2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def spent(limits: CallerLimits, caller: Caller, tries: int = 100) -> int:
    """How many calls a caller makes at once before it is refused."""
    for number in range(tries):
        try:
            limits.spend(caller)
        except CallerLimit:
            return number
    return tries


def test_burst_then_the_rate(clock: Clock) -> None:
    limits = CallerLimits(rate=10, burst=5, at_once=None)
    assert spent(limits, A) == 5
    clock.now += 0.25
    assert spent(limits, A) == 2
    clock.now += 3600
    assert spent(limits, A) == 5


def test_refusal_says_when_there_is_room_again(clock: Clock) -> None:
    limits = CallerLimits(rate=0.5, burst=1, at_once=None)
    limits.spend(A)
    clock.now += 0.5
    with pytest.raises(CallerLimit, match=r"a may make 0\.5 calls a second") as caught:
        limits.spend(A)
    assert caught.value.retry_after == pytest.approx(1.5)
    clock.now += caught.value.retry_after
    limits.spend(A)


def test_each_caller_has_its_own_and_two_keys_of_one_name_share(clock: Clock) -> None:
    limits = CallerLimits(rate=1, burst=3, at_once=None)
    assert spent(limits, A) == 3
    assert spent(limits, Caller("a", ROLES, "key mien_9")) == 0
    assert spent(limits, B) == 3
    # A token's subject is not the key of that name: an issuer does not know of keys.
    assert spent(limits, Caller("a", ROLES, "token")) == 3


def test_calls_at_once() -> None:
    limits = CallerLimits(rate=None, burst=1, at_once=2)
    limits.enter(A)
    limits.enter(A)
    with pytest.raises(CallerLimit, match="2 calls in progress") as caught:
        limits.enter(A)
    assert caught.value.retry_after > 0
    limits.enter(B)
    limits.leave(A)
    limits.enter(A)
    assert spent(limits, A) == 100


async def test_messages_wait_for_their_turn() -> None:
    limits = CallerLimits(rate=100, burst=1, at_once=None)
    started = time.monotonic()
    for _ in range(6):
        await limits.wait_and_spend(A)
    assert 0.04 < time.monotonic() - started < 5


def test_memory_is_bounded_and_forgets_only_the_idle(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    limits = CallerLimits(rate=1, burst=2, at_once=1)
    limits.enter(A)
    assert spent(limits, B) == 2
    for number in range(500):
        clock.now += 0.001
        limits.spend(Caller(str(number), ROLES, "token"))
        assert len(limits._uses) <= 10
    with pytest.raises(CallerLimit):
        limits.enter(A)  # its call is still in progress
    clock.now += 10
    limits.spend(Caller("late", ROLES, "token"))
    assert len(limits._uses) <= 10
