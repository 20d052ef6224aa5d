"""Text that somebody else has written, made fit for a terminal."""

import unicodedata

_JOINERS = "\u200c\u200d"
"""Persian names and emoji need them."""


def printable(text: str) -> str:
    r"""The text on one line, with escapes such as `\x1b` in place of what does not print.

    That is what moves the cursor, colours the terminal or sets its title, ends a line, or turns the direction
    of writing: a name with it could make the output say something else. Spaces of any width stay.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or each in _JOINERS or unicodedata.category(each) == "Zs"
        else each.encode("unicode_escape").decode()
        for each in text
    )
