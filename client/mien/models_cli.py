"""`mien models`: what a server's models are, how they do, and loading and unloading them."""

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mien import cli_options
from mien.client import DEFAULT_TIMEOUT
from mien.tables import aligned

if TYPE_CHECKING:
    from mien.model_control import ModelControl, ModelDetails, ModelFigures
    from mien.status import ModelStatus

LOAD_TIMEOUT = 300.0
INTERVAL = 2.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"
NONE = "-"

Run = Callable[["ModelControl", argparse.Namespace], None]


def add_models_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `models` and its subcommands to the commands of a parser; `common` are options of each."""
    help_text = "Shows, loads and unloads a server's models. Needs mien[models]."
    models = commands.add_parser("models", help=help_text, description=help_text)
    subcommands = models.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Run, help_text: str, *, model: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = subcommands.add_parser(
            name, parents=[common], help=help_text, description=help_text
        )
        sub.set_defaults(run=run, parser=sub, connect=_connect, usual_timeout=timeout)
        if model:
            sub.add_argument("name", metavar="MODEL", nargs="?" if model == "optional" else None)
        return sub

    command("ls", _ls, "Lists the models, their versions and states.")
    command("show", _show, "Shows one model's versions, tensors and configuration.", model="one")
    command(
        "load",
        _load,
        "Loads a model, or loads it again while it serves.",
        model="one",
        timeout=LOAD_TIMEOUT,
    )
    command("unload", _unload, "Unloads a model.", model="one", timeout=LOAD_TIMEOUT)
    command("stats", _stats, "What the models have done since they were loaded.", model="optional")
    watch = command(
        "watch", _watch, "What the models do, every few seconds until Ctrl-C.", model="optional"
    )
    watch.add_argument(
        "--interval",
        type=cli_options.seconds,
        default=INTERVAL,
        metavar="SECONDS",
        help=f"between two tables (default: {INTERVAL:g})",
    )
    watch.add_argument("--count", type=cli_options.count, metavar="N", help="end after N tables")


def _connect(arguments: argparse.Namespace) -> "ModelControl":
    from mien.model_control import ModelControl  # tritonclient may be missing

    parser: argparse.ArgumentParser = arguments.parser
    timeout = arguments.usual_timeout if arguments.timeout is None else arguments.timeout
    try:
        return ModelControl(arguments.address, timeout=timeout, **cli_options.connection(arguments))
    except ValueError as error:
        parser.error(str(error))


def _ls(control: "ModelControl", arguments: argparse.Namespace) -> None:
    _print(control.index(), index_table, arguments)


def _show(control: "ModelControl", arguments: argparse.Namespace) -> None:
    details = control.details(arguments.name)
    if arguments.json:
        print(json.dumps(details.as_dict()))
    else:
        print(details_text(details))


def _load(control: "ModelControl", arguments: argparse.Namespace) -> None:
    _print(control.load(arguments.name), index_table, arguments)


def _unload(control: "ModelControl", arguments: argparse.Namespace) -> None:
    _print(control.unload(arguments.name), index_table, arguments)


def _stats(control: "ModelControl", arguments: argparse.Namespace) -> None:
    _print(control.statistics(arguments.name or ""), statistics_table, arguments)


def _watch(control: "ModelControl", arguments: argparse.Namespace) -> None:
    name = arguments.name or ""
    before, looked = _by_version(control.statistics(name)), time.monotonic()
    tables = itertools.count() if arguments.count is None else range(arguments.count)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        for _ in tables:
            time.sleep(arguments.interval)
            now, moment = _by_version(control.statistics(name)), time.monotonic()
            recent = [figures.since(before.get(key)) for key, figures in now.items()]
            seconds, before, looked = moment - looked, now, moment
            if arguments.json:
                models = [figures.as_dict() for figures in recent]
                print(json.dumps({"seconds": seconds, "models": models}), flush=True)
            else:
                start = CLEAR_SCREEN if sys.stdout.isatty() else ""
                print(f"{start}{rates_table(recent, seconds)}\n", flush=True)


def _by_version(figures: Iterable["ModelFigures"]) -> dict[tuple[str, int], "ModelFigures"]:
    return {(each.name, each.version): each for each in figures}


def _print(
    found: Sequence[Any], table: Callable[[Any], str], arguments: argparse.Namespace
) -> None:
    if arguments.json:
        print(json.dumps([each.as_dict() for each in found]))
    else:
        print(table(found))


def index_table(statuses: Sequence["ModelStatus"]) -> str:
    """Models, versions, states and reasons."""
    rows = [
        [status.name, str(status.version or NONE), status.state, status.reason]
        for status in statuses
    ]
    return aligned(["model", "version", "state", "reason"], rows, left={0, 2, 3})


def details_text(details: "ModelDetails") -> str:
    """One model's versions, tensors and configuration."""
    parts = [index_table(details.statuses)]
    if details.platform:
        rows = [
            [kind, tensor.name, tensor.datatype, str(tensor.shape)]
            for kind, tensors in (("input", details.inputs), ("output", details.outputs))
            for tensor in tensors
        ]
        header = [details.platform, "name", "type", "shape"]
        parts += [aligned(header, rows, left={0, 1, 2, 3}), details.config_text.rstrip()]
    return "\n\n".join(parts)


def statistics_table(figures: Sequence["ModelFigures"]) -> str:
    """Counts and means since the models were loaded; a second table where traffic is split."""
    rows = [
        [
            *(each.name, str(each.version), str(each.requests), str(each.failed)),
            *(str(each.rows), str(each.batches), *_means(each)),
        ]
        for each in figures
    ]
    header = ["model", "version", "requests", "failed", "rows", "batches", *MEANS]
    table = aligned(header, rows, left={0})
    split = [
        [each.name, str(each.version), key, str(count)]
        for each in figures
        for key, count in each.traffic.items()
    ]
    if not split:
        return table
    return f"{table}\n\n{aligned(['model', 'version', 'traffic', 'count'], split, left={0, 2})}"


def rates_table(figures: Sequence["ModelFigures"], seconds: float) -> str:
    """Rates and means of the last seconds."""
    rows = [
        [
            *(each.name, str(each.version)),
            *(
                f"{count / seconds:.1f}"
                for count in (each.requests, each.failed, each.rows, each.batches)
            ),
            *_means(each),
        ]
        for each in figures
    ]
    header = ["model", "version", "requests/s", "failed/s", "rows/s", "batches/s", *MEANS]
    return aligned(header, rows, left={0})


MEANS = ("rows/batch", "ms", "queue ms", "run ms")
"""Of a request: how long it took in all, in the queue, and in its batch."""


def _means(each: "ModelFigures") -> list[str]:
    return [
        _number(each.rows_per_batch, 1),
        _number(each.mean("total"), 2),
        _number(each.mean("queue"), 2),
        _number(each.mean("input", "infer", "output"), 2),
    ]


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
