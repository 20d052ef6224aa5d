"""Files that are read again: when, and what becomes of those that cannot be used."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mien_server.access import watching as module
from mien_server.access.watching import Watched, watch
from mien_server.errors import OperatorError


class Held:
    """What a test reads from a file, and whether it can."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_text()
        self.file = Watched("words", [path], self.read, self.use)

    def read(self) -> str:
        try:
            text = self.path.read_text()
        except OSError as error:
            raise OperatorError("gone") from error
        if text == "broken":
            raise OperatorError("it is broken")
        return text

    def use(self, text: str) -> None:
        self.content = text


@pytest.fixture
def held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Held:
    caplog.set_level(logging.INFO)
    path = tmp_path / "words"
    path.write_text("one")
    return Held(path)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == module.__name__]


async def test_unchanged_file_is_not_read(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    await held.file.look()
    assert lines(caplog) == []


def replace(path: Path, text: str) -> None:
    other = path.with_name("other")
    other.write_text(text)
    other.replace(path)


def relink(path: Path, text: str) -> None:
    other = path.with_name("another")
    other.write_text(text)
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change", [replace, relink, lambda path, text: path.write_text(text)], ids=["mv", "ln", "cp"]
)
async def test_changed_file_is_taken(
    held: Held, change: Callable[[Path, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    change(held.path, "other")
    await held.file.look()
    await held.file.look()
    assert held.content == "other"
    assert lines(caplog) == ["INFO words reloaded"]


async def test_broken_file_keeps_the_old_and_is_told_once_when_it_stays(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    held.path.write_text("broken")
    await held.file.look()
    assert lines(caplog) == []  # perhaps half of it was there
    for _ in range(3):
        await held.file.look()
    told = "ERROR words not reloaded, the old ones stay: it is broken"
    assert (held.content, lines(caplog)) == ("one", [told])
    held.path.unlink()
    for _ in range(3):
        await held.file.look()
    assert (held.content, lines(caplog)[1:]) == (
        "one",
        ["ERROR words not reloaded, the old ones stay: gone"],
    )
    held.path.write_text("mended")
    await held.file.look()
    assert held.content == "mended"


async def test_forced_look_reads_and_tells_in_any_case(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    await held.file.look(forced=True)
    held.path.write_text("broken")
    await held.file.look(forced=True)
    assert [line.split()[0] for line in lines(caplog)] == ["INFO", "ERROR"]


async def test_change_of_mode_is_a_change(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    held.path.chmod(0o611)
    await held.file.look()
    assert lines(caplog) == ["INFO words reloaded"]


async def test_watch_looks_by_itself_and_at_once_when_asked(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def until(text: str) -> None:
        async with asyncio.timeout(10):
            while held.content != text:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.005)
    now = asyncio.Event()
    watching = asyncio.create_task(watch([held.file], now))
    held.path.write_text("later")
    await until("later")
    monkeypatch.setattr(module, "LOOK_SECONDS", 60)
    await asyncio.sleep(0.02)
    held.path.write_text("at once")
    now.set()
    await until("at once")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_defect_does_not_end_the_watch(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.005)

    def fail() -> str:
        raise ZeroDivisionError

    broken = Watched("broken", [held.path], fail, print)
    now = asyncio.Event()
    now.set()
    watching = asyncio.create_task(watch([broken, held.file], now))
    held.path.write_text("later")
    async with asyncio.timeout(10):
        while held.content != "later":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert "the next one follows" in caplog.text
