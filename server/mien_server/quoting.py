"""How a message quotes: of a request enough to recognise it, of paths what callers may know."""

import reprlib
from collections.abc import Iterable
from pathlib import Path

_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


def quoted(text: str) -> str:
    """The text in quotes; of a long one the beginning and the end, 100 characters altogether."""
    return _SHORT.repr(text)


def without_folders(text: str, folders: Iterable[Path]) -> str:
    """The text with the paths of files in these folders made relative to them.

    A folder that the text names by itself becomes "the repository", wherever it is or leads to.
    """
    if "/" not in text:
        return text
    names = {str(path) for folder in folders for path in (folder.absolute(), folder.resolve())}
    for name in sorted(names - {"/"}, key=len, reverse=True):
        text = text.replace(f"{name}/", "").replace(name, "the repository")
    return text
