"""Builds what guards the door from the settings."""

from dataclasses import dataclass
from typing import Any

from mien_server.access.gate import Gate
from mien_server.access.keyring import Keyring
from mien_server.access.keys import read_keys
from mien_server.access.watching import Watched
from mien_server.settings import Settings


@dataclass(frozen=True)
class Access:
    """What guards the door.

    Attributes:
        gate: what every call passes.
        files: what is read again when it changes.
    """

    gate: Gate
    files: tuple[Watched[Any], ...]


def open_access(settings: Settings) -> Access:
    """Reads every file that the settings name.

    Raises:
        OperatorError: one cannot be used.
    """
    if (path := settings.keys_file) is None:
        return Access(Gate(), ())
    keyring = Keyring(read_keys(path))
    return Access(
        Gate(keyring), (Watched("keys", [path], lambda: read_keys(path), keyring.replace),)
    )
