"""What tuning has measured: for people, for machines, and as a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

from mien_server.load.curves import Point, draw_curves
from mien_server.load.report import machine, table
from mien_server.tuning.candidates import Candidate
from mien_server.tuning.sweep import Figures, Trial, winner

_PACKAGES = ("mien", "numpy", "onnxruntime", "openvino", "torch")
_HEADER = ("candidate", "callers", "rows/s", "p50 ms", "p99 ms", "measured s", "meets objective")
_LEGEND = 490
"""Pixels, for the names of candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What came of it.

    Attributes:
        model, version: what was tuned.
        objective_ms: milliseconds that the 99th percentile may have.
        minutes: that measuring was given.
        side: of the pictures, in pixels.
        devices: where the model ran.
        date: when it began.
        trials: every candidate, the model's own settings first; at least that was measured.
        refused: pairs of backend and precision that did not load, and why.
    """

    model: str
    version: int
    objective_ms: float
    minutes: float
    side: int
    devices: Sequence[str]
    date: datetime
    trials: Sequence[Trial[Candidate]]
    refused: Mapping[str, str]

    @property
    def own(self) -> Candidate:
        """The model's settings as they are."""
        return self.trials[0].candidate

    @property
    def best(self) -> tuple[Candidate, Figures]:
        """The winner with its figures; if nothing meets the objective, what comes closest."""
        trial, figures = winner(self.trials, self.objective_ms)
        return trial.candidate, figures

    @property
    def met(self) -> bool:
        """Whether the winner meets the objective."""
        return self.best[1].meets(self.objective_ms)

    def ranked(self) -> list[Trial[Candidate]]:
        """Those measured: the winner, then by how far they came and how good they are."""
        measured = [trial for trial in self.trials if trial.rung]
        return sorted(
            measured,
            key=lambda trial: (
                trial.candidate != self.best[0],
                -trial.rung,
                *trial.rank(self.objective_ms),
            ),
        )


def summary_table(tuning: Tuning, most: int | None = None) -> str:
    """A Markdown table of the candidates, best first: all of them, or the first few and the model's own."""
    ranked = tuning.ranked()
    shown = [t for n, t in enumerate(ranked) if most is None or n < most or t is tuning.trials[0]]
    return table(_HEADER, [_cells(tuning, trial) for trial in shown])


def verdict(tuning: Tuning) -> str:
    """One or two lines: what is best, and what it gains."""
    candidate, figures = tuning.best
    objective = f"p99 within {tuning.objective_ms:g} ms"
    found = _told(figures)
    if not tuning.met:
        return f"nothing meets {objective}; the closest is {candidate}: {found}"
    if candidate == tuning.own:
        return f"the settings as they are are the best for {objective}: {candidate}: {found}"
    own = tuning.trials[0].best(tuning.objective_ms)
    text = f"the best for {objective} is {candidate}: {found}\nas it is, {tuning.own}: {_told(own)}"
    if candidate.precision != tuning.own.precision:
        text += (
            f"\nanother precision changes answers a little: see how well {tuning.model} does in it with"
            " `mien-server evaluate`, or keep it with --keep precision"
        )
    return text


def markdown(tuning: Tuning) -> str:
    """The whole report."""
    lines = [
        f"# {tuning.model} version {tuning.version}, p99 within {tuning.objective_ms:g} ms",
        "",
        f"{tuning.date:%Y-%m-%d}, {tuning.minutes:g} minutes on {', '.join(tuning.devices)}: {machine()}.",
        _versions_text(),
        "",
        f"Rows of random pixels, {tuning.side} a side, straight into the slot. Each candidate with the",
        "number of callers that suits it best, medians over the rounds of the last rung that it came to;",
        "those of later rungs stand above the others, and were measured for longer.",
        "",
        verdict(tuning).replace("\n", "\n\n"),
        "",
        "![Throughput against latency](evidence.svg)",
        "",
        summary_table(tuning),
    ]
    if missed := len(tuning.trials) - len(tuning.ranked()):
        lines += ["", f"The time was too short for {missed} more."]
    lines += [f"\nNot tried, {name}: {why}" for name, why in tuning.refused.items()]
    return "\n".join(lines) + "\n"


def document(tuning: Tuning) -> dict[str, Any]:
    """Everything that was measured, as JSON's values."""
    candidate, figures = tuning.best
    return {
        "model": tuning.model,
        "version": tuning.version,
        "date": tuning.date.isoformat(timespec="seconds"),
        "machine": machine(),
        "devices": list(tuning.devices),
        "versions": _versions(),
        "objective_p99_ms": tuning.objective_ms,
        "minutes": tuning.minutes,
        "side": tuning.side,
        "own": asdict(tuning.own),
        "best": {**asdict(candidate), **_finite(asdict(figures)), "meets_objective": tuning.met},
        "refused": dict(tuning.refused),
        "candidates": [
            {
                **asdict(trial.candidate),
                "rung": trial.rung,
                "figures": [_finite(asdict(each)) for each in trial.figures()],
                "measurements": [
                    {
                        "rung": each.rung,
                        "round": each.round,
                        "callers": each.callers,
                        "seconds": round(each.seconds, 3),
                        **_finite(asdict(each.summary)),
                    }
                    for each in trial.measurements
                ],
            }
            for trial in tuning.trials
        ],
    }


def picture(tuning: Tuning) -> str:
    """An SVG: p99 over throughput; a curve for each candidate of the last rung, grey points for others."""
    ranked = tuning.ranked()
    last = ranked[0].rung
    curves, others = {}, []
    for trial in ranked:
        points = [
            Point(each.rate, each.p99_ms, str(each.callers))
            for each in trial.figures()
            if math.isfinite(each.p99_ms)
        ]
        if trial.rung == last:
            curves[_name(tuning, trial)] = points
        else:
            others += points
    return draw_curves(
        curves,
        title=f"{tuning.model}: 1 to 32 callers, p99 within {tuning.objective_ms:g} ms",
        across="rows",
        upwards="p99 ms",
        others=others,
        limit=tuning.objective_ms,
        right=_LEGEND,
    )


def _cells(tuning: Tuning, trial: Trial[Candidate]) -> Sequence[str]:
    best = trial.best(tuning.objective_ms)
    figures = (best.rate, best.p50_ms, best.p99_ms, sum(e.seconds for e in trial.figures()))
    shown = ["-" if math.isinf(value) else f"{value:.1f}" for value in figures]
    meets = "yes" if best.meets(tuning.objective_ms) else "no"
    return [_name(tuning, trial), str(best.callers), *shown, meets]


def _name(tuning: Tuning, trial: Trial[Candidate]) -> str:
    return f"{trial.candidate} (as it is)" if trial is tuning.trials[0] else str(trial.candidate)


def _told(figures: Figures) -> str:
    callers = "1 caller" if figures.callers == 1 else f"{figures.callers} callers"
    p99 = "without an answer" if math.isinf(figures.p99_ms) else f"p99 {figures.p99_ms:.1f} ms"
    failed = f", {figures.failed} calls failed" if figures.failed else ""
    return f"{figures.rate:.1f} rows/s with {callers}, {p99}{failed}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _versions_text() -> str:
    return ", ".join(f"{name} {version}" for name, version in _versions().items()) + "."


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows neither inf nor NaN: null stands for them."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
