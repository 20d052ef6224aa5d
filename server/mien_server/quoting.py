"""How a message quotes what a request says: enough to recognise it, never all of a long text."""

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


def quoted(text: str) -> str:
    """The text in quotes; of a long one the beginning and the end, 100 characters altogether."""
    return _SHORT.repr(text)
