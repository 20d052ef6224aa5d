"""Tells a person how an installation goes: bars on a terminal, plain lines elsewhere."""

import sys
from typing import NoReturn, TextIO

from tqdm import tqdm


class Progress:
    """Tells everything to one stream, standard error by default."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def say(self, text: str) -> None:
        """Writes one line."""
        print(text, file=self._stream, flush=True)

    def transfer(self, label: str) -> "tqdm[NoReturn]":
        """A bar over bytes, as a context manager; set its `total` when it is known."""
        return tqdm(
            desc=label,
            unit="B",
            unit_scale=True,
            leave=False,
            file=self._stream,
            disable=not self._stream.isatty(),
        )
