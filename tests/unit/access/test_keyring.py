"""Whose key it is: found once, remembered, forgotten with its entry; and what wrong keys cost."""

import asyncio
import threading
import time

import pytest

from mien_server.access import keyring as module
from mien_server.access.callers import Caller
from mien_server.access.keyring import Keyring
from mien_server.access.keys import Entry, is_secret_of, new_entry
from mien_server.access.roles import CallerRole

REVOKED = {"revoked": "2026-01-01T00:00:00+00:00"}


@pytest.fixture(scope="module")
def made() -> tuple[Entry, str]:
    return new_entry("billing", (CallerRole.INFER,), certificate=False)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids for which scrypt ran."""
    ran: list[str] = []

    def noting(secret: str, entry: Entry) -> bool:
        ran.append(entry.id)
        return is_secret_of(secret, entry)

    monkeypatch.setattr(module, "is_secret_of", noting)
    return ran


async def test_key_is_computed_once_and_then_known(
    made: tuple[Entry, str], computed: list[str]
) -> None:
    entry, key = made
    ring = Keyring([entry])
    assert ring.known(key) is None
    callers = await asyncio.gather(*(ring.find(key) for _ in range(20)))
    assert {caller.name for caller in callers if caller} == {"billing"}
    assert None not in callers
    assert ring.known(key) == callers[0]
    assert computed == [entry.id]


async def test_wrong_keys_get_none_without_scrypt(
    made: tuple[Entry, str], computed: list[str]
) -> None:
    entry, key = made
    _, stranger = new_entry("x", (CallerRole.INFER,), certificate=False)
    ring = Keyring([entry])
    forged = key[:-10] + "a" * 10
    for wrong in (stranger, forged, "", "mien_", "\ud800", "x" * 8192):
        assert await ring.find(wrong) is None
    assert computed == []


async def test_secret_that_only_fits_the_id_is_refused_by_scrypt(
    made: tuple[Entry, str], monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    entry, key = made
    ring = Keyring([entry])
    secret = "a" * 52
    monkeypatch.setattr(module, "parse_key", lambda _: (entry.id, secret))
    assert await ring.find(f"mien_{entry.id}_{secret}") is None
    assert computed == [entry.id]
    assert await ring.find(key) is None  # its secret was replaced, too


async def test_reload_forgets_what_was_revoked_and_keeps_what_stayed(
    made: tuple[Entry, str], computed: list[str]
) -> None:
    entry, key = made
    ring = Keyring([entry])
    assert await ring.find(key)
    ring.replace([entry])
    assert ring.known(key)
    ring.replace([entry.model_copy(update=REVOKED)])
    assert ring.known(key) is None
    assert await ring.find(key) is None
    ring.replace([])
    assert await ring.find(key) is None
    assert computed == [entry.id]


async def test_other_roles_come_with_the_reload(made: tuple[Entry, str]) -> None:
    entry, key = made
    ring = Keyring([entry])
    await ring.find(key)
    ring.replace([entry.model_copy(update={"roles": (CallerRole.ADMIN,)})])
    found = await ring.find(key)
    assert found is not None
    assert found.roles == {CallerRole.ADMIN, CallerRole.READ}


async def test_key_that_is_revoked_while_it_is_computed_is_not_taken(
    made: tuple[Entry, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, key = made
    let_go = threading.Event()
    monkeypatch.setattr(module, "is_secret_of", lambda *_: let_go.wait(10))
    ring = Keyring([entry])
    finding = asyncio.create_task(ring.find(key))
    await asyncio.sleep(0.01)
    ring.replace([entry.model_copy(update=REVOKED)])
    let_go.set()
    assert await finding is None
    assert ring.known(key) is None


async def test_caller_who_leaves_does_not_spoil_it_for_others(
    made: tuple[Entry, str],
) -> None:
    entry, key = made
    ring = Keyring([entry])
    leaving, staying = (asyncio.create_task(ring.find(key)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying


async def test_loop_goes_on_while_a_key_is_computed(made: tuple[Entry, str]) -> None:
    entry, key = made
    ring = Keyring([entry])
    finding = asyncio.create_task(ring.find(key))
    turns = 0
    while not finding.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 3


async def test_flood_of_wrong_keys_costs_little(made: tuple[Entry, str]) -> None:
    entry, key = made
    ring = Keyring([entry])
    wrong = [
        f"{key[:-6]}{number:06d}".translate(str.maketrans("0189", "abcd")) for number in range(2000)
    ]
    started = time.process_time()
    for each in wrong:
        assert await ring.find(each) is None
    # scrypt alone would take a minute for these.
    assert time.process_time() - started < 1


def test_certificate_is_known_by_the_first_of_its_names() -> None:
    entries = [
        new_entry(name, (role,), certificate=True)[0]
        for name, role in (("ops.example", CallerRole.ADMIN), ("billing", CallerRole.INFER))
    ]
    ring = Keyring(entries)
    found = ring.of_certificate(["unknown", "billing", "ops.example"])
    assert found is not None
    assert found == Caller("billing", frozenset({CallerRole.INFER}), "certificate")
    assert ring.of_certificate(["BILLING", ""]) is None
    ring.replace([each.model_copy(update=REVOKED) for each in entries])
    assert ring.of_certificate(["billing"]) is None
