"""Tunes one model, and writes what came of it."""

import json
import os
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

from mien_server.evaluation.check import Target, find_target
from mien_server.evaluation.loaded import EvaluationError
from mien_server.repository.config.editing import replace_text
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.folders import CONFIG
from mien_server.settings import Settings
from mien_server.tuning import Setting
from mien_server.tuning.evidence import Tuning, document, markdown, picture
from mien_server.tuning.rewriting import tuned
from mien_server.tuning.slots import load_model
from mien_server.tuning.sweep import sweep


def tune(
    settings: Settings,
    name: str,
    *,
    out: Path,
    objective_ms: float,
    minutes: float,
    version: int | None = None,
    side: int | None = None,
    keep: Collection[Setting] = (),
    apply: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Measures a model's candidates, and writes the best settings and the evidence into a folder. Blocking.

    Args:
        settings: those of a server: the model repository, the cores.
        name: the model's.
        out: a folder, made if it does not exist. It gets evidence.json, .md and .svg and, unless nothing
            meets the objective, config.pbtxt: the model's own with what is better changed.
        objective_ms: milliseconds that the 99th percentile may have.
        minutes: of measuring, beside loading.
        version: of the model; None: the highest that its version policy asks for.
        side: of the pictures, in pixels; None: the smallest that the model takes.
        keep: settings to leave as they are.
        apply: whether the model's own config.pbtxt is replaced, too.
        say: is told how it goes.

    Raises:
        OperatorError: there is no such model, it does not load, or a file cannot be written.
    """
    target = find_target(settings.model_repository, name, version)
    config = target.folder.parent / CONFIG
    text = ConfigText.read(config)
    if apply and not os.access(config.resolve().parent, os.W_OK):
        raise EvaluationError(f"{config} may not be written: leave out --apply")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).unlink(missing_ok=True)  # of an earlier run, whose evidence goes, too
    except OSError as error:
        raise EvaluationError(f"{out} cannot be written: {error.strerror}") from error
    tuning = _measured(settings, target, objective_ms, minutes, side, keep, say)
    files = {
        "evidence.json": json.dumps(document(tuning), indent=2) + "\n",
        "evidence.md": markdown(tuning),
        "evidence.svg": picture(tuning),
    }
    if tuning.met:
        files[CONFIG] = tuned(text, tuning.own, tuning.best[0]).source
    try:
        for filename, content in files.items():
            (out / filename).write_text(content, encoding="utf-8")
        if apply and tuning.met and files[CONFIG] != text.source:
            replace_text(config, files[CONFIG])
    except OSError as error:
        raise EvaluationError(f"what was found cannot be written: {error}") from error
    return tuning


def _measured(
    settings: Settings,
    target: Target,
    objective_ms: float,
    minutes: float,
    side: int | None,
    keep: Collection[Setting],
    say: Callable[[str], None],
) -> Tuning:
    date = datetime.now(UTC)
    with load_model(settings, target, side=side, keep=keep) as model:
        for pair, why in model.refused.items():
            say(f"not tried, {pair}: {why}")
        trials = sweep(
            model.candidates,
            model.visit,
            objective_ms=objective_ms,
            seconds=60 * minutes,
            say=say,
        )
        return Tuning(
            model=target.config.name,
            version=target.version,
            objective_ms=objective_ms,
            minutes=minutes,
            side=model.side,
            devices=[device.name for device in model.devices],
            date=date,
            trials=trials,
            refused=model.refused,
        )
