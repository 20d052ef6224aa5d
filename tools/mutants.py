"""Looks for what the tests would not notice: puts faults into a package, one at a time, and runs its tests.

A seeded sample of small faults (a comparison flipped, a call left out, a number off by one) goes into a
temporary copy of the checkout, and for each the unit tests of the package run until one fails. A fault that
none of them notices is printed: either a test is missing there, or the fault changes nothing. The exit
status is 0 whatever survives, for this is a question and no check.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".*", "__pycache__", "out", "build", "dist", "[0-9]*")  # the last: installed weights
FLIPPED: dict[
    type[ast.AST], tuple[str, str]
] = {  # what an operator looks like, and what it becomes
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Add: (r"\+", "-"), ast.Sub: ("-", "+")},
    **{ast.Is: ("is", "is not"), ast.IsNot: (r"is\s+not", "is")},
    **{ast.In: ("in", "not in"), ast.NotIn: (r"not\s+in", "in")},
    **{ast.And: ("and", "or"), ast.Or: ("or", "and")},
}
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
LOGGERS = {"logger", "logging", "warnings"}
GUARDS = {"strict", "exist_ok", "daemon"}  # keyword arguments that a good call does not need


@dataclass(frozen=True, order=True)
class Fault:
    """`text` instead of the bytes from `start` to `end` of a file; `path` is below the checkout's root."""

    path: Path
    start: int
    end: int
    text: str

    def put_into(self, source: bytes) -> bytes:
        """The file's content with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def difference(self, source: bytes) -> str:
        """The place, and its line without and with the fault."""
        line = source.count(b"\n", 0, self.start)
        was, becomes = (
            text.decode().splitlines()[line].strip() for text in (source, self.put_into(source))
        )
        return f"{self.path}:{line + 1}: {was}  =>  {becomes}"


def faults_in(path: Path, source: bytes) -> list[Fault]:
    """Every fault that could be put into a module, in the order of the file."""
    lines = source.splitlines(keepends=True)

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        begin, end = (len(b"".join(lines[: at - 1])) for at in (node.lineno, node.end_lineno or 0))
        return begin + node.col_offset, end + (node.end_col_offset or 0)

    def between(before: ast.expr, operator: ast.AST, after: ast.expr) -> Iterator[Fault]:
        pattern, text = FLIPPED.get(type(operator), ("", ""))
        start, end = span(before)[1], span(after)[0]
        if pattern and (found := re.search(pattern.encode(), source[start:end])):
            yield Fault(path, start + found.start(), start + found.end(), text)

    def at(node: ast.AST, may_be_none: bool) -> Iterator[Fault]:
        match node:
            case ast.Compare(left=left, ops=operators, comparators=others):
                for triple in zip([left, *others], operators, others, strict=False):
                    yield from between(*triple)
            case ast.BoolOp(op=operator, values=values):
                for before, after in pairwise(values):
                    yield from between(before, operator, after)
            case (
                ast.BinOp(left=before, op=operator, right=after)
                | ast.AugAssign(target=before, op=operator, value=after)
            ):
                yield from between(before, operator, after)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield Fault(path, *span(node), ast.unparse(operand))
            case ast.Constant(value=bool(value)):
                yield Fault(path, *span(node), str(not value))
            case ast.Constant(value=int(number) | float(number)):
                yield Fault(path, *span(node), repr(number + 1))
            case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call())) | ast.Raise():
                yield Fault(path, *span(node), "pass")
            case ast.Return(value=ast.expr() as value) if may_be_none:
                yield Fault(path, *span(value), "None")
            case ast.Call(func=ast.Name(id=name) as called) if name in SWAPPED:
                yield Fault(path, *span(called), SWAPPED[name])
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                if isinstance(test, ast.Name | ast.Attribute | ast.Call):
                    yield Fault(path, *span(test), f"not {ast.unparse(test)}")

    def below(node: ast.AST, may_be_none: bool) -> Iterator[Fault]:
        if _is_left_alone(node):
            return
        yield from at(node, may_be_none)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            may_be_none = node.returns is not None and "| None" in ast.unparse(node.returns)
        for name, value in ast.iter_fields(node):
            if name not in {"annotation", "returns", "decorator_list"}:
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from below(child, may_be_none)

    found = below(ast.parse(source), may_be_none=False)
    return sorted({fault for fault in found if fault.put_into(source) != source})


def _is_left_alone(node: ast.AST) -> bool:
    """Whether a fault in it would say nothing: texts, logs, what only developers see, types."""
    match node:
        case ast.JoinedStr() | ast.FunctionDef(name="__repr__"):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in LOGGERS
        case ast.keyword(arg=str(name)):
            return name in GUARDS
    return False


def faults_of(root: Path, package: str) -> list[Fault]:
    """Every fault that could be put into a package: `client` is the SDK, any other one the server's."""
    folder = root / ("client/mien" if package == "client" else f"server/mien_server/{package}")
    paths = sorted(path.relative_to(root) for path in folder.rglob("*.py"))
    paths = [path for path in paths if "v1" not in path.parts]  # v1 is generated
    return [fault for path in paths for fault in faults_in(path, (root / path).read_bytes())]


def is_green(checkout: Path, package: str, timeout: float | None = None) -> bool:
    """Whether the package's unit tests pass; those that take longer than `timeout` seconds do not."""
    paths = [str(checkout / folder) for folder in ("client", "server", ".")]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", f"tests/unit/{package}", "-x", "-q"],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def survivors(root: Path, package: str, sample: Sequence[Fault]) -> list[str]:
    """Tries faults in a copy of the checkout; prints and returns those that no unit test notices."""
    left = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        began = time.monotonic()
        if not is_green(copy, package):
            sys.exit(f"mutants: tests/unit/{package} does not pass even without a fault")
        seconds = time.monotonic() - began
        for fault in sample:
            source = (root / fault.path).read_bytes()
            (copy / fault.path).write_bytes(fault.put_into(source))
            if is_green(copy, package, timeout=30 + 3 * seconds):
                left.append(fault.difference(source))
                print(left[-1], flush=True)
            (copy / fault.path).write_bytes(source)
    print(f"{len(sample) - len(left)} of {len(sample)} were caught")
    return left


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("package", help="client, or a package of mien_server with unit tests")
    parser.add_argument("number", type=int, help="how many faults to try")
    parser.add_argument("seed", type=int, help="which ones")
    options = parser.parse_args()
    every = faults_of(ROOT, options.package)
    if not every or not (ROOT / "tests/unit" / options.package).is_dir():
        parser.error(f"no package with tests of its own: {options.package!r}")
    random.Random(options.seed).shuffle(every)  # noqa: S311
    sample = sorted(every[: options.number])
    print(
        f"{options.package}: {len(sample)} of {len(every)} faults, seed {options.seed}", flush=True
    )
    survivors(ROOT, options.package, sample)


if __name__ == "__main__":
    main()
