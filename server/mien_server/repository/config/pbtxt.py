"""Reads protobuf text with Triton's schema and remembers on which line each field stands.

`google.protobuf.text_format` reports lines only for syntax errors, and of a repeated map key the last
wins in silence; the small syntax tree here is for what it does not say. `editing` changes texts by it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from google.protobuf import text_encoding, text_format
from tritonclient.grpc import model_config_pb2

from mien_server.errors import OperatorError
from mien_server.repository.folders import is_regular

FieldPath: TypeAlias = tuple[str | int, ...]
"""Names, indices and keys of a map: ("input", 0, "dims"), ("parameters", "mean")."""

_MAX_BYTES = 1 << 20
_QUOTE = '"'

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*')
      | (?P<mark>[{}<>\[\]:,;])
      | (?P<word>[^\s{}<>\[\]:,;\#"']+)""",
    re.VERBOSE,
)


class ConfigError(OperatorError):
    """A config.pbtxt that cannot be used.

    Attributes:
        path: the file.
        line: the line at fault, counted from 1.
        field: its dotted path (`dynamic_batching.preferred_batch_size`), or "".
        problem: what is wrong and how to fix it.
    """

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        super().__init__(f"{path}:{line}: {field + ': ' if field else ''}{problem}")
        self.path = path
        self.line = line
        self.field = field
        self.problem = problem


Span: TypeAlias = tuple[int, int]
"""Where something begins in a text, and where it has ended, in characters."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a field, as it stands in the text.

    Attributes:
        name: the field's. Of a map, whose entries have one child each, that of the child is the key.
        line: counted from 1.
        span: the value; a message with its brackets.
        value: of a field that is no message, without quotes.
        children: the fields of a message.
        is_map_entry: whether it is a map's {key, value}.
        whole: the field, from its name to its end. The values of one list have it in common.
    """

    name: str
    line: int
    span: Span
    value: str = ""
    children: tuple["Node", ...] = ()
    is_map_entry: bool = False
    whole: Span = (0, 0)


class _Token(NamedTuple):
    """A mark, a word, or a string: a quote and then what it says; its line, and its place."""

    text: str
    line: int
    start: int
    end: int


def field_name(path: FieldPath) -> str:
    """The path as people write it: `input[0].dims`, `parameters.mean`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


class ConfigText:
    """A parsed config.pbtxt: Triton's message, and where in the file its fields stand.

    Attributes:
        path: the file.
        source: its text.
        message: Triton's `inference.ModelConfig`.
    """

    def __init__(self, path: Path, text: str) -> None:
        """Parses the text.

        Raises:
            ConfigError: it is no protobuf text of Triton's schema, or names a map key twice.
        """
        self.path = path
        self.source = text
        try:
            self.message: Any = text_format.Parse(text, model_config_pb2.ModelConfig())
        except text_format.ParseError as error:
            # The parser writes "line:column : " in front of its messages, which `ConfigError` does.
            problem = re.sub(r"^\d+:\d+ : ", "", str(error))
            raise ConfigError(path, error.GetLine() or 1, "", problem) from error
        children, _ = _fields(_tokens(text), "")
        self._root = Node("", 1, (0, len(text)), children=children)
        self._refuse_repeated_keys(self._root)

    @classmethod
    def read(cls, path: Path) -> "ConfigText":
        """Reads and parses a file of at most 1 MiB.

        Raises:
            ConfigError: likewise, or the file cannot be read.
        """
        try:
            if not is_regular(path):
                raise ConfigError(path, 1, "", "is no file")
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise ConfigError(path, 1, "", "is larger than 1 MiB")
            return cls(path, data.decode())
        except OSError as error:
            raise ConfigError(path, 1, "", f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise ConfigError(path, line, "", "is not UTF-8 text") from error

    def model_name(self) -> str:
        """The model's name, which is its folder's; `message` has it afterwards, too.

        Raises:
            ConfigError: the text gives another.
        """
        folder = self.path.parent.name
        name = self.message.name or folder
        if name != folder:
            raise self.error(
                ("name",), f"is {name!r}; must be the folder's name, {folder!r}, or left out"
            )
        self.message.name = folder
        return folder

    def line(self, path: FieldPath, *, value: str = "") -> int:
        """The line of a field, or of the nearest thing around it that the file has.

        Args:
            path: the field.
            value: among several of that name, the one written so.
        """
        for length in range(len(path), 0, -1):
            if found := self.find(path[:length]):
                return next((node for node in found if node.value == value), found[0]).line
        return 1

    def find(self, path: FieldPath) -> list[Node]:
        """The values that stand at a path, in the order of the text; none if the field is not there."""
        found = [self._root]
        for step in path:
            if isinstance(step, int):
                found = found[step : step + 1]
            else:
                found = [child for node in found for child in node.children if child.name == step]
        return found

    def error(self, path: FieldPath, problem: str, *, value: str = "") -> ConfigError:
        """The error that says so about this field."""
        return ConfigError(self.path, self.line(path, value=value), field_name(path), problem)

    def _refuse_repeated_keys(self, node: Node, within: FieldPath = ()) -> None:
        seen: set[FieldPath] = set()
        for child in node.children:
            if child.is_map_entry:
                path = (*within, child.name, child.children[0].name)
                if path in seen:
                    line = child.children[0].line
                    raise ConfigError(self.path, line, field_name(path), "is given twice")
                seen.add(path)
            self._refuse_repeated_keys(child, (*within, child.name))


def _tokens(text: str) -> Iterator[_Token]:
    """Marks, words and strings. Strings side by side are one."""
    for kind, run in groupby(_lexemes(text), key=lambda lexeme: lexeme[0]):
        lexemes = [lexeme for _, lexeme in run]
        if kind == "string":
            said = b"".join(text_encoding.CUnescape(part.text[1:-1]) for part in lexemes)
            first = lexemes[0]._replace(end=lexemes[-1].end)
            yield first._replace(text=_QUOTE + said.decode(errors="replace"))
        else:
            yield from lexemes


def _lexemes(text: str) -> Iterator[tuple[str | None, _Token]]:
    """What stands in the text but for space and comments, as it is, and its kind."""
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            yield match.lastgroup, _Token(match.group(), line, *match.span())
        line += match.group().count("\n")


def _fields(tokens: Iterator[_Token], end: str) -> tuple[tuple[Node, ...], int]:
    """The fields up to the closing mark, and where that ends. The text is known to be well formed."""
    nodes: list[Node] = []
    for token in tokens:
        if token.text == end:
            return tuple(nodes), token.end
        if token.text not in ",;":
            nodes += _values(token, tokens)
    return tuple(nodes), 0


def _values(name: _Token, tokens: Iterator[_Token]) -> list[Node]:
    """The values of one field: one, or several in brackets."""
    nodes: list[Node] = []
    depth, end = 0, name.end
    for mark, at, start, stop in tokens:
        end, line = stop, at if depth else name.line
        if mark == "[":
            depth += 1
        elif mark == "]":
            depth -= 1
        elif mark in "{<":
            children, end = _fields(tokens, "}" if mark == "{" else ">")
            nodes.append(_entry(Node(name.text, line, (start, end), children=children)))
        elif mark not in ":,":
            nodes.append(Node(name.text, line, (start, end), value=mark.removeprefix(_QUOTE)))
        else:
            continue
        if not depth:
            break
    return [replace(node, whole=(name.start, end)) for node in nodes]


def _entry(node: Node) -> Node:
    """A map's entry {key, value} as a node that has one child, named by the key."""
    fields = {child.name: child for child in node.children}
    if "key" not in fields:
        return node
    value = fields.get("value", fields["key"])
    child = replace(value, name=fields["key"].value, line=fields["key"].line)
    return replace(node, children=(child,), is_map_entry=True)
