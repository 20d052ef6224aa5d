"""Labels as one text each, as they lie in the file and in memory, and the different ones of a collection.

`checks` lets no control characters into labels, so two of these can separate them: a text has a label if it
has a certain part.
"""

import numpy as np
from numpy.typing import NDArray

from mien_server.gallery.types import Labels

_LABEL = "\x1e"
_VALUE = "\x1f"

_SET_BYTES = 200
"""Of a different text beside its characters: of the string, its number and its places in both tables."""


def to_text(labels: Labels) -> str:
    """The text of labels, the same for the same ones; "" for none."""
    if not labels:
        return ""
    items = sorted(labels.items())
    return _LABEL + "".join(f"{key}{_VALUE}{value}{_LABEL}" for key, value in items)


def from_text(text: str) -> dict[str, str]:
    """The labels of a text."""
    items = (item.partition(_VALUE) for item in text.split(_LABEL) if item)
    return {key: value for key, _, value in items}


def nbytes_of(text: str) -> int:
    """Bytes of memory that a text takes which no other face of its collection has."""
    return _SET_BYTES + len(text.encode()) if text else 0


class LabelSets:
    """The different texts of a collection's faces, by number. A number is not used twice.

    Attributes:
        texts: by number; None where no face has it any more. A list that only grows: `drop` puts another in
            its place, for searches that still read it.
        nbytes: bytes of memory that they take.
    """

    def __init__(self) -> None:
        self.texts: list[str | None] = []
        self.nbytes = 0
        self._numbers: dict[str, int] = {}
        self._uses: list[int] = []

    def number(self, text: str) -> int:
        """The number of a text for one more face."""
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.texts)
            self.texts.append(text)
            self._uses.append(0)
            self.nbytes += nbytes_of(text)
        self._uses[number] += 1
        return number

    def drop(self, numbers: NDArray[np.int32]) -> None:
        """Ends the use of these numbers, each as often as it is there."""
        gone = set()
        for number in numbers.tolist():
            self._uses[number] -= 1
            if not self._uses[number]:
                gone.add(number)
        if not gone:
            return
        for number in gone:
            text = self.texts[number]
            assert text is not None  # noqa: S101 - it was in use
            del self._numbers[text]
            self.nbytes -= nbytes_of(text)
        self.texts = [None if i in gone else text for i, text in enumerate(self.texts)]


def fitting(texts: "list[str | None]", wanted: Labels) -> NDArray[np.bool_]:
    """Which of the texts have all of the labels: [n]."""
    parts = [f"{_LABEL}{key}{_VALUE}{value}{_LABEL}" for key, value in wanted.items()]
    return np.array([t is not None and all(part in t for part in parts) for t in texts], bool)
