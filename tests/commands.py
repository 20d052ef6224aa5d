"""Commands in the process of the tests, which saves each of them half a second of imports."""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

from mien.cli import main as mien
from mien_server.commands.main import main as mien_server


def run_mien(*arguments: str) -> tuple[int, str, str]:
    """One command of `mien`: its status, and what it printed and said."""
    return _run(mien, arguments)


def run_mien_server(*arguments: str) -> tuple[int, str, str]:
    """The same of one of `mien-server`."""
    return _run(mien_server, arguments)


def _run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as said:
        status = main(arguments)
    return status, printed.getvalue(), said.getvalue()
