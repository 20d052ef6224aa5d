"""Logging, set up once: lines for people or JSON for machines, on standard error.

Facts of a line (`model`, `incident`, …) go in by the standard `extra=`: the text format appends them as
key=value, the JSON format makes them members of the object.
"""

import json
import logging
import sys
import time
from typing import Literal, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["text", "json"],
    stream: TextIO | None = None,
) -> None:
    """Sends every logger's lines of at least `level` to `stream` (standard error if None)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("asyncio", "grpc", "PIL"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.root.level))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_quotes_no_metadata)
    logging.captureWarnings(True)


def _quotes_no_metadata(record: logging.LogRecord) -> bool:
    """False for what gRPC logs of metadata that is no UTF-8: all of it, be it a key, as often as it comes."""
    return not str(record.msg).startswith("Invalid encoding on")


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _timestamp(record: logging.LogRecord) -> str:
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{clock}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO mien_server.app: ready address=127.0.0.1:8001`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """One line; what a caller sent cannot start another."""
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items())
        line = f"{_timestamp(record)} {record.levelname} {record.name}: {record.message}{facts}"
        return line.replace("\r", "\\r").replace("\n", "\\n")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the facts, and exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; facts that JSON does not know become strings."""
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class RateLimit(logging.Filter):
    """Lets at most `burst` warnings of each message template through in every `seconds`.

    The next line that passes, of whatever kind, carries the number of those dropped as the fact
    `suppressed`, so that a flood of refusals cannot fill the disk and is still counted. Other levels pass
    freely.

    Args:
        burst: lines of one template in one period, at least 1.
        seconds: length of the period, above 0.
    """

    def __init__(self, burst: int = 10, seconds: float = 10.0) -> None:
        super().__init__()
        self._burst = burst
        self._seconds = seconds
        self._periods: dict[str, tuple[float, int]] = {}
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is let through."""
        if record.levelno == logging.WARNING and not self._fits(record):
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
