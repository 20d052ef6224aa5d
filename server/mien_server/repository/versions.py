"""A loaded (or failed) version of a model, as the rest of the server sees it."""

from dataclasses import dataclass
from enum import StrEnum

from mien_server.repository.config.model import ModelConfig
from mien_server.scheduling.slot import Slot


class State(StrEnum):
    """Triton's states of a model version."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A version that serves: everything the pipeline needs of it.

    Attributes:
        name: the model's name, its folder in the repository.
        version: 1 or more.
        fingerprint: 16 hexadecimal digits over weights, preprocessing and alignment.
        config: the parsed config.pbtxt.
        slot: the queue in front of it.
    """

    name: str
    version: int
    fingerprint: str
    config: ModelConfig
    slot: Slot


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of the repository's index.

    Attributes:
        name: the model's name.
        version: 1 or more; 0 stands for the model itself, where no version of it could be tried.
        state: of the version.
        reason: why it is not READY and what to do about it, for people. Of a READY version: why the last
            attempt to replace it failed, or "".
        model: what serves, if READY.
    """

    name: str
    version: int
    state: State
    reason: str = ""
    model: ReadyModel | None = None
