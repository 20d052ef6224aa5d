"""Changes single fields of a config.pbtxt's text, and leaves the rest of it as it is, comments included."""

import re
import shutil
from pathlib import Path

from mien_server.repository.config.pbtxt import ConfigText, FieldPath, Node

_SEPARATOR = re.compile(r"[ \t]*[,;]?")


def with_field(text: ConfigText, path: FieldPath, value: str) -> ConfigText:
    """The config with a field set: changed where it stands, or added to the message that it belongs to.

    Args:
        text: the config.
        path: of a field that is in no map. Of a list, index 0 alone can be made.
        value: as protobuf text: `7`, `[ 4 ]`, `{ count: 1 }`.

    Raises:
        ConfigError: what comes of it is no config.
    """
    source, (*above, name) = text.source, path
    if found := text.find(path):
        # A repeated field may be written several times: the first place gets the value, the others go.
        first, *more = dict.fromkeys(node.whole for node in found)
        for start, end in reversed(more):
            separator = _SEPARATOR.match(source, end)
            source = source[:start] + source[separator.end() if separator else end :]
        return ConfigText(
            text.path, f"{source[: first[0]]}{_field(name, value)}{source[first[1] :]}"
        )
    if not above:
        ended = source if not source or source.endswith("\n") else f"{source}\n"
        return ConfigText(text.path, f"{ended}\n{_field(name, value)}\n")
    if isinstance(name, int):
        return with_field(text, tuple(above), f"[ {value} ]")
    if parents := text.find(tuple(above)):
        return ConfigText(text.path, _inserted(source, parents[0], _field(name, value)))
    return with_field(text, tuple(above), f"{{ {_field(name, value)} }}")


def with_parameter(text: ConfigText, key: str, value: str) -> ConfigText:
    """The config with a parameter set: changed where it stands, or added at the end.

    Args:
        text: the config.
        key: of the parameter.
        value: its string, without characters that would have to be escaped.

    Raises:
        ConfigError: what comes of it is no config.
    """
    source = text.source
    if found := text.find(("parameters", key, "string_value")):
        start, end = found[0].span
        return ConfigText(text.path, f'{source[:start]}"{value}"{source[end:]}')
    entry = f'{{ key: "{key}", value: {{ string_value: "{value}" }} }}'
    ended = source if source.endswith("\n") else f"{source}\n"
    return ConfigText(text.path, f"{ended}\nparameters {entry}\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a config.pbtxt anew, at once: a server that reads it meanwhile finds the old text or the new.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    shutil.copymode(path, partial)
    partial.replace(path)


def _field(name: str | int, value: str) -> str:
    return f"{name} {value}" if "{" in value else f"{name}: {value}"


def _inserted(source: str, parent: Node, field: str) -> str:
    """The text with another field at the end of a message."""
    start, end = parent.span
    before, after = source[: end - 1], source[end - 1 :]
    line = before.rpartition("\n")[2]
    if not line.strip() and "\n" in source[start:end]:  # the closing bracket has a line of its own
        return f"{before.removesuffix(line)}{line}  {field}\n{line}{after}"
    if parent.children:
        at = parent.children[-1].whole[1]
        return f"{source[:at]}, {field}{source[at:]}"
    return f"{source[: start + 1]} {field} {source[start + 1 :].lstrip(' ')}"
