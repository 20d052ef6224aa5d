"""What a server says of itself: whether it is ready, and which models it has.

The messages are those of gRPC's health service and of Triton's protocol, as far as they are read here; what
carries them elsewhere (grpcio-health-checking, tritonclient) would be much for that little.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from mien.errors import MienError, Unavailable

HEALTH = "/grpc.health.v1.Health/Check"
INDEX = "/inference.GRPCInferenceService/RepositoryIndex"
METADATA = "/inference.GRPCInferenceService/ServerMetadata"

_SERVING = 1
_CHECK_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0

_FILE = """
name: "mien/status.proto"  package: "mien.status"  syntax: "proto3"
message_type { name: "Empty" }
message_type { name: "Health" field { name: "status" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL } }
message_type {
  name: "Server"
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "version" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type {
  name: "Model"
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "version" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "state" number: 3 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "reason" number: 4 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type {
  name: "Index"
  field { name: "models" number: 1 type: TYPE_MESSAGE type_name: ".mien.status.Model" label: LABEL_REPEATED }
}
"""
# In a pool of their own, they meet nobody else's messages.
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(text_format.Parse(_FILE, descriptor_pb2.FileDescriptorProto()))


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"mien.status.{name}"))


Empty = _message("Empty")
_ANSWERS = {HEALTH: _message("Health"), INDEX: _message("Index"), METADATA: _message("Server")}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model's version, as the server's index has it.

    Attributes:
        name: the model's.
        version: 1 or more; None where no version of the model is known.
        state: UNKNOWN, LOADING, READY, UNLOADING or UNAVAILABLE.
        reason: why it is not ready, or could not be loaded again; else "".
    """

    name: str
    version: int | None
    state: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def method(channel: Any, path: str) -> Any:
    """What calls the method of this path on a channel; its request is `Empty`."""
    return channel.unary_unary(
        path,
        request_serializer=Empty.SerializeToString,
        response_deserializer=_ANSWERS[path].FromString,
    )


def statuses(models: Sequence[Any]) -> tuple[ModelStatus, ...]:
    """The lines of the index."""
    return tuple(
        ModelStatus(
            line.name,
            int(line.version) if line.version else None,
            line.state or "UNKNOWN",
            line.reason,
        )
        for line in models
    )


def serving(health: Any) -> bool:
    """Whether the health service says so."""
    return bool(health.status == _SERVING)


def only_not_ready(error: MienError) -> bool:
    """Whether a failed look means that the server may be ready later. A wrong setup does not mend itself."""
    return error.reason != "TLS_FAILED"


class Waiting:
    """The pauses between two looks at a server that is not ready, until the time is over."""

    def __init__(self, address: str, seconds: float, left: Callable[[], float]) -> None:
        self._address, self._seconds, self._left = address, seconds, left
        self._pause = _FIRST_PAUSE

    def look_seconds(self) -> float:
        """How long the next look may take."""
        return max(0.001, min(_CHECK_SECONDS, self._left()))

    def pause(self, why: MienError | None) -> float:
        """How long to wait before the next look.

        Args:
            why: how the last look failed; None if the server said that it does not serve.

        Raises:
            Unavailable: the time is over.
        """
        if self._left() <= self._pause:
            because = "it is loading its models, or stopping" if why is None else why.message
            raise Unavailable(
                f"the server at {self._address} was not ready within {self._seconds:g} s: {because}",
                reason="SERVER_NOT_READY" if why is None else why.reason,
                method="Check",
            ) from why
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause
