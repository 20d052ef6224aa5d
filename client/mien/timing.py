"""Where a call's time went, as the server reports it on request.

The caller's metadata `mien-timing: 1` asks for it; the answer is the trailing metadata
`server-timing` in the syntax of the W3C's Server Timing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*({_TOKEN}|"(?:[^"\\]|\\.)*")')
_METRIC = re.compile(rf'({_TOKEN})((?:\s*;\s*{_TOKEN}\s*=\s*(?:{_TOKEN}|"(?:[^"\\]|\\.)*"))*)')


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage of a call.

    Attributes:
        name: what was done: "decode", "detect.queue", "detect.compute". A verify has some twice.
        milliseconds: how long it took, 0 or more.
        batch: rows of the batch that the stage ran in, 1 or more; None where nothing was batched.
    """

    name: str
    milliseconds: float
    batch: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """`name`, `milliseconds` and `batch`, ready for JSON."""
        return {"name": self.name, "milliseconds": self.milliseconds, "batch": self.batch}


def request_metadata(timing: bool) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that asks for its stages, or does not."""
    return (("mien-timing", "1"),) if timing else ()


def stages_of(trailing: Iterable[tuple[str, str | bytes]]) -> tuple[StageTiming, ...]:
    """The stages that an answer's trailing metadata tell; none if the call did not ask."""
    headers = [str(value) for key, value in trailing if key == "server-timing"]
    return parse_server_timing(", ".join(headers))


def parse_server_timing(header: str) -> tuple[StageTiming, ...]:
    """The stages of a Server-Timing header, in its order; what has no duration is left out."""
    stages = []
    for name, rest in _METRIC.findall(header):
        parameters = {key.lower(): value.strip('"') for key, value in _PARAMETER.findall(rest)}
        try:
            duration = float(parameters["dur"])
            batch = int(parameters["batch"]) if "batch" in parameters else None
        except (KeyError, ValueError):
            continue
        stages.append(StageTiming(name, duration, batch))
    return tuple(stages)
