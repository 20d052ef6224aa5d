"""Logging, set up once: lines for people or JSON for machines, on standard error.

Facts of a line (`model`, `incident`, …) go in by the standard `extra=`: the text format appends them as
key=value, the JSON format makes them members of the object.
"""

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Literal, TextIO

GATHER_SECONDS = 0.1
"""How long the line of a call may wait for others."""

_JSON = json.JSONEncoder(default=str, ensure_ascii=False)
_AMBIGUOUS = re.compile(r"[\s\"]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["text", "json"],
    stream: TextIO | None = None,
) -> None:
    """Sends every logger's lines of at least `level` to `stream` (standard error if None)."""
    handler = _Gathering(stream or sys.stderr)
    formatter = JsonFormatter() if format == "json" else TextFormatter()
    handler.setFormatter(formatter)
    _direct.clear()
    _direct.append((handler, formatter))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("asyncio", "grpc", "PIL"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.root.level))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_quotes_no_metadata)
    logging.captureWarnings(True)
    # Nobody reads where in the code a line comes from, and to find out took a third of what a line costs.
    for unread in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, unread, False)
    setattr(logging, "_srcfile", None)  # noqa: B010 - as Python's logging HOWTO says; its stubs do not know it


class _Gathering(logging.StreamHandler[TextIO]):
    """Writes some lines at a time, if they may wait a moment.

    To write makes the thread give up the interpreter and wait for it again: of each call's line by itself
    that took 0.2 ms and 6 % of the throughput of SFace's crops.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Writes a line within GATHER_SECONDS if an event loop runs here, or else at once."""
        with self.lock or nullcontext():
            self._lines.append(f"{line}\n")
            if len(self._lines) > 1:
                return
            try:
                asyncio.get_running_loop().call_later(GATHER_SECONDS, self.flush)
            except RuntimeError:
                self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, after the lines that came before it."""
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        """Writes what waits."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            try:
                if lines:
                    self.stream.write("".join(lines))
                super().flush()
            except Exception:  # a full disk, a reader that is gone
                if not self.stream.closed:
                    self.handleError(logging.makeLogRecord({"msg": f"{len(lines)} lines of calls"}))


_direct: list[tuple[_Gathering, "TextFormatter | JsonFormatter"]] = []
"""What `configure_logging` has set up last."""


def log_quickly(
    logger: logging.Logger, level: int, message: str, facts: Mapping[str, object]
) -> None:
    """As `logger.log(level, message, extra=facts)`, without the logger's filters, a little later and cheaply.

    Args:
        level: one that the logger is enabled for.
    """
    for handler, formatter in _direct:
        if handler in logging.root.handlers:
            line = formatter.line(
                time.time(), logging.getLevelName(level), logger.name, message, facts
            )
            handler.add(line)
            return
    logger.log(level, message, extra=facts)


def _quotes_no_metadata(record: logging.LogRecord) -> bool:
    """False for what gRPC logs of metadata that is no UTF-8: all of it, be it a key, as often as it comes."""
    return not str(record.msg).startswith("Invalid encoding on")


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


@lru_cache(maxsize=2)
def _clock(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _timestamp(created: float) -> str:
    return f"{_clock(int(created))}.{int(created % 1 * 1000):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO mien_server.app: ready address=127.0.0.1:8001`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """One line; what a caller sent cannot start another."""
        facts = _facts(record)
        return self.line(record.created, record.levelname, record.name, record.message, facts)

    def line(
        self, created: float, level: str, logger: str, message: str, facts: Mapping[str, object]
    ) -> str:
        """A line of text."""
        told = "".join([f" {key}={_quoted(str(value))}" for key, value in facts.items()])
        line = f"{_timestamp(created)} {level} {logger}: {message}{told}"
        return line.replace("\r", "\\r").replace("\n", "\\n")


def _quoted(value: str) -> str:
    """A fact's value in text, so that none is taken for two: in quotes, as in JSON, if it has spaces."""
    return _JSON.encode(value) if _AMBIGUOUS.search(value) else value


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the facts, and exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; facts that JSON does not know become strings."""
        facts = _facts(record)
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return self.line(record.created, record.levelname, record.name, record.getMessage(), facts)

    def line(
        self, created: float, level: str, logger: str, message: str, facts: Mapping[str, object]
    ) -> str:
        """A line of JSON."""
        return _JSON.encode(
            {
                "time": _timestamp(created),
                "level": level.lower(),
                "logger": logger,
                "message": message,
                **facts,
            }
        )


class RateLimit(logging.Filter):
    """Lets at most `burst` warnings of each message template through in every `seconds`, and such of others.

    The next line that passes, of whatever kind, carries the number of those dropped as the fact
    `suppressed`, so that a flood of refusals cannot fill the disk and is still counted. Other levels pass
    freely.

    Args:
        burst: lines of one template in one period, at least 1.
        seconds: length of the period, above 0.
        also: templates that are limited whatever their level.
    """

    def __init__(
        self, burst: int = 10, seconds: float = 10.0, *, also: Collection[str] = ()
    ) -> None:
        super().__init__()
        self._also = also
        self._burst = burst
        self._seconds = seconds
        self._periods: dict[str, tuple[float, int]] = {}
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Lines dropped that no line has told of yet."""
        return self._dropped

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is let through."""
        limited = record.levelno == logging.WARNING or record.msg in self._also
        if limited and not self._fits(record):
            self._dropped += 1
            return False
        if self._dropped:
            record.suppressed, self._dropped = self._dropped, 0
        return True

    def _fits(self, record: logging.LogRecord) -> bool:
        template = str(record.msg)
        start, seen = self._periods.get(template, (record.created, 0))
        if record.created - start >= self._seconds:
            start, seen = record.created, 0
        self._periods[template] = (start, seen + 1)
        return seen < self._burst
