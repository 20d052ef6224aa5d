"""What tests say of an edited config.pbtxt."""

import difflib

from mien_server.repository.config.pbtxt import ConfigText


def changed_lines(before: ConfigText, after: ConfigText) -> list[str]:
    """The lines that went, with a minus before them, and those that came, with a plus."""
    lines = difflib.ndiff(before.source.splitlines(), after.source.splitlines())
    return [line for line in lines if line[0] in "+-"]
