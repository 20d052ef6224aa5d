"""What a ModelInferRequest asks for besides its tensors. Pure functions."""

import re
from dataclasses import dataclass
from typing import Any

from mien_server.errors import InvalidRequest, Reason
from mien_server.quoting import quoted

_MICROSECONDS_PER_SECOND = 1_000_000
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

FINAL_RESPONSE_REQUEST = "triton_enable_empty_final_response"
"""Streaming clients set it; every answer here is final, so there never is an empty one."""

_KNOWN = frozenset({"priority", "timeout", FINAL_RESPONSE_REQUEST})


@dataclass(frozen=True, slots=True)
class InferOptions:
    """Scheduling parameters of a request.

    Attributes:
        priority: 1 is the most urgent; 0: the model's default.
        queue_timeout: seconds that it may wait in a queue, or None.
    """

    priority: int = 0
    queue_timeout: float | None = None


def infer_options(request: Any) -> InferOptions:
    """The parameters of an `inference.ModelInferRequest`.

    Raises:
        InvalidRequest: names a parameter that has no meaning here, or whose value has none.
    """
    # A map has no order of its own, and the same request should get the same answer.
    key = min((key for key in request.parameters if key not in _KNOWN), default=None)
    if key is not None:
        why = "requests know no parameter of that name; priority and timeout are what there is"
        if key.startswith("sequence_"):
            why = "the models keep no state between requests"
        raise _invalid(f"parameter {quoted(key)}: {why}.", key)
    timeout = _whole_number(request, "timeout")
    return InferOptions(
        priority=_whole_number(request, "priority"),
        queue_timeout=timeout / _MICROSECONDS_PER_SECOND if timeout else None,
    )


def model_version(text: str) -> int:
    """The number of a version; 0, the server's choice, for "" and for Triton's -1.

    Raises:
        InvalidRequest: it is no version.
    """
    if text in ("", "-1"):
        return 0
    if not _VERSION.fullmatch(text):
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            f"version {quoted(text)} is none: give a number from 1 on, or nothing for the highest ready one.",
        )
    return int(text)


def _whole_number(request: Any, key: str) -> int:
    if key not in request.parameters:
        return 0
    parameter = request.parameters[key]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise _invalid(f"parameter {key!r} must be a whole number, not {choice}.", key)
    value = int(getattr(parameter, choice))
    if value < 0:
        raise _invalid(f"parameter {key!r} is {value}; must be 0 or more.", key)
    return value


def _invalid(message: str, key: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message, field=f"parameters.{key}")
