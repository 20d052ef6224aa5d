"""`mien-server tune`: the settings with which a model answers most within a limit on its latency."""

import argparse
import re
from pathlib import Path

from mien_server.commands.shared import Commands, add_command, add_settings, say
from mien_server.settings import load_settings
from mien_server.start_checks import check_folders
from mien_server.tuning import SETTINGS, Setting

_SHOWN = 10
_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>ms|s)")
_UNITS_MS = {"ms": 1.0, "s": 1e3}


def add_to(commands: Commands) -> None:
    """Adds `tune`."""
    parser = add_command(
        commands,
        "tune",
        _tune,
        help="find the fastest settings of a model within a limit on its latency",
        description="Load a model with each backend and precision that can run it, measure batch sizes, queue"
        " delays and batches at once under load, and write a config.pbtxt with the settings that answer most"
        " while 99 of 100 answers come in time. Stop what else computes on the machine meanwhile. The exit"
        " status is 1 if nothing meets the objective.",
    )
    parser.add_argument("name", metavar="MODEL", help="of the model repository")
    parser.add_argument(
        "--slo-p99",
        dest="objective_ms",
        type=milliseconds,
        required=True,
        metavar="DURATION",
        help="within which 99 of 100 rows are to be answered: 100ms, 0.5s",
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=3.0,
        metavar="N",
        help="of measuring; loading comes on top [3]",
    )
    parser.add_argument("--version", type=int, metavar="N", help="[the highest that is served]")
    parser.add_argument(
        "--side",
        type=int,
        metavar="PIXELS",
        help="which of a detector's canvases [its smallest bucket]",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        choices=SETTINGS,
        help="a setting to leave as it is; may be given several times",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="of config.pbtxt and evidence.{json,md,svg} [tuned/MODEL]",
    )
    parser.add_argument(
        "--apply", action="store_true", help="replace the model's own config.pbtxt, too"
    )
    add_settings(parser, "model_repository", "cpu_cores")


def milliseconds(text: str) -> float:
    """A duration above 0 with its unit, `100ms` or `0.5s`, in milliseconds.

    Raises:
        ArgumentTypeError: it is none.
    """
    found = _DURATION.fullmatch(text.strip())
    value = float(found["number"]) * _UNITS_MS[found["unit"]] if found else 0.0
    if not value:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration above 0 with a unit, such as 100ms or 0.5s"
        )
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0, up to a day")
    return value


def _tune(
    name: str,
    objective_ms: float,
    minutes: float,
    version: int | None,
    side: int | None,
    keep: list[Setting],
    out: Path | None,
    apply: bool,
    **flags: object,
) -> int:
    settings = load_settings(flags)
    check_folders(settings.model_repository)
    from mien_server.tuning.evidence import summary_table, verdict
    from mien_server.tuning.tune import tune
    from mien_server.weights.progress import Progress

    folder, tell = out or Path("tuned") / name, Progress().say
    found = tune(
        settings,
        name,
        out=folder,
        objective_ms=objective_ms,
        minutes=minutes,
        version=version,
        side=side,
        keep=keep,
        apply=apply,
        say=tell,
    )
    say(f"{summary_table(found, _SHOWN)}\n\n{verdict(found)}")
    if not found.met:
        tell(f"{folder} has the evidence, and no config.pbtxt")
        return 1
    tell(f"{folder} has config.pbtxt and the evidence")
    if apply:
        tell(f"the config.pbtxt of {name} in the model repository is this one now")
    return 0
