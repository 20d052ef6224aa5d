"""What evaluations found, for people and for machines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mien_server.evaluation.check import Check
from mien_server.evaluation.detection import Detection
from mien_server.evaluation.loaded import LoadedModels
from mien_server.evaluation.metrics import Accuracy, Rates
from mien_server.evaluation.pairs import Pairs
from mien_server.evaluation.verification import Failure, Verification
from mien_server.evaluation.wider import WiderFace
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.repository.versions import ReadyModel

_ROLES: Mapping[AnyRole, str] = {DETECTOR: "detector", EMBEDDER: "embedder"}
_FAILURES_SHOWN = 10
_MIB = 1024 * 1024


def check_document(check: Check) -> dict[str, Any]:
    """A check as JSON's values."""
    cosines = check.cosines
    return {
        "model": check.model,
        "version": check.version,
        "device": check.device,
        "cores": check.cores,
        "precision": check.precision,
        "passed": check.passed if cosines else None,
        "cosine": (
            {"min": min(cosines), "median": float(np.median(cosines)), "bound": check.bound}
            if cosines
            else None
        ),
        "problem": check.problem,
        "side": check.side,
        "speeds": [
            {
                "rows": each.rows,
                "milliseconds": round(1000 * each.seconds, 3),
                "rows_per_second": round(each.rows_per_second, 1),
            }
            for each in check.speeds
        ],
        "memory": {"loaded_bytes": check.loaded_bytes, "running_bytes": check.running_bytes},
    }


def check_text(check: Check) -> str:
    """A check as a table."""
    where = check.device + (f", {_counted(check.cores, 'core')}" if check.cores else "")
    lines = [f"{check.model} version {check.version}, {check.precision} on {where}"]
    if check.cosines:
        verdict = "passed" if check.passed else "FAILED"
        lines.append(
            f"cosine to fp32   min {min(check.cosines):.6f}, median {np.median(check.cosines):.6f}"
            f" (bound {check.bound:g}): {verdict}"
        )
    else:
        lines.append(f"cosine to fp32   not verified: {check.problem}")
    lines.append(
        f"memory           {check.loaded_bytes / _MIB:.0f} MiB loaded,"
        f" {check.running_bytes / _MIB:.0f} MiB more while it ran"
    )
    lines += ["", f"speed with pictures of {check.side} pixels a side, from pixels to results"]
    lines.append(f"{'rows':>6}{'ms':>12}{'rows/s':>12}")
    for each in check.speeds:
        lines.append(f"{each.rows:>6}{1000 * each.seconds:>12.2f}{each.rows_per_second:>12.1f}")
    return "\n".join(lines)


def verification_document(
    loaded: LoadedModels, pairs: Pairs, found: Verification
) -> dict[str, Any]:
    """An evaluation of verification as JSON's values; null where the data are insufficient."""
    return {
        **models_document(loaded),
        "pairs": {
            "source": pairs.source,
            "genuine": found.genuine,
            "impostor": found.impostor,
            "left_out": found.left_out,
        },
        "accuracy": (
            {
                "mean": found.accuracy.mean,
                "std": found.accuracy.std,
                "folds": found.accuracy.folds,
                "thresholds": list(found.accuracy.thresholds),
            }
            if found.accuracy
            else None
        ),
        "best": _rates(found.best),
        "configured": _rates(found.configured) if found.configured else None,
        "tar_at_far": [
            {
                "far": each.far,
                "tar": each.tar,
                "threshold": each.threshold,
                "insufficient_data": each.tar is None,
                "impostor_pairs_needed": each.needed,
            }
            for each in found.operations
        ],
        "failures": failures_document(found.failures),
    }


def verification_text(loaded: LoadedModels, pairs: Pairs, found: Verification) -> str:
    """An evaluation of verification as a table."""
    accuracy = "insufficient data: too few pairs of a kind"
    if found.accuracy:
        accuracy = f"{_percent(found.accuracy)} over {found.accuracy.folds} folds"
    lines = [
        verification_title(loaded),
        f"pairs       {pairs_text(pairs, found)}",
        f"accuracy    {accuracy}",
        f"best        {_rates_text(found.best)}",
    ]
    if found.configured:
        lines.append(f"configured  {_rates_text(found.configured)}")
    lines += ["", f"{'FAR':>8}{'TAR':>9}{'threshold':>12}"]
    for each in found.operations:
        if each.tar is None or each.threshold is None:
            why = f"insufficient data: {each.needed:,} pairs of two people needed"
            lines.append(f"{each.far:>8g}   {why}")
        else:
            lines.append(f"{each.far:>8g}{each.tar:>9.4f}{each.threshold:>12.4f}")
    return "\n".join([*lines, *failures_text(found.failures)])


def verification_title(loaded: LoadedModels) -> str:
    """The models, for a heading."""
    embedder, detector = loaded.models[EMBEDDER], loaded.models.get(DETECTOR)
    title = f"{embedder.name} version {embedder.version}"
    return f"{title} on faces of {detector.name} version {detector.version}" if detector else title


def pairs_text(pairs: Pairs, found: Verification) -> str:
    """How many pairs of each kind, and of what."""
    text = f"{found.genuine:,} of one person and {found.impostor:,} of two, {pairs.source}"
    return f"{text}; {found.left_out:,} left out" if found.left_out else text


def accuracy_text(accuracy: Accuracy | None) -> str:
    """Mean and standard deviation."""
    return _percent(accuracy) if accuracy else "insufficient data"


def detection_document(loaded: LoadedModels, data: WiderFace, found: Detection) -> dict[str, Any]:
    """An evaluation of detection as JSON's values."""
    return {
        **models_document(loaded),
        "source": data.source,
        "photos": found.photos,
        "official_subsets": data.official,
        "average_precision": {
            name: result.average_precision for name, result in found.subsets.items()
        },
        "faces": {name: result.faces for name, result in found.subsets.items()},
        "failures": failures_document(found.failures),
    }


def detection_text(loaded: LoadedModels, data: WiderFace, found: Detection) -> str:
    """An evaluation of detection as a table."""
    model = loaded.models[DETECTOR]
    lines = [
        f"{model.name} version {model.version}, {found.photos:,} photos of {data.source}",
        "",
        f"{'':8}{'AP':>8}{'faces':>10}",
    ]
    for name, result in found.subsets.items():
        precision = "-" if result.average_precision is None else f"{result.average_precision:.4f}"
        lines.append(f"{name:8}{precision:>8}{result.faces:>10,}")
    if not data.official:
        lines += ["", "NOT the official subsets, and not to be compared with published figures"]
    return "\n".join([*lines, *failures_text(found.failures)])


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def models_document(loaded: LoadedModels) -> dict[str, Any]:
    """The models of an evaluation, by role."""
    return {_ROLES[role]: _identity(model) for role, model in loaded.models.items()}


def _identity(model: ReadyModel) -> dict[str, Any]:
    return {"name": model.name, "version": model.version, "fingerprint": model.fingerprint}


def _rates(rates: Rates) -> dict[str, float]:
    return {
        "threshold": rates.threshold,
        "accuracy": rates.accuracy,
        "far": rates.far,
        "tar": rates.tar,
    }


def _rates_text(rates: Rates) -> str:
    return (
        f"threshold {rates.threshold:.4f}: accuracy {100 * rates.accuracy:.2f} %,"
        f" FAR {rates.far:.4g}, TAR {rates.tar:.4g}"
    )


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.mean:.2f} % ± {100 * accuracy.std:.2f} %"


def failures_document(failures: Sequence[Failure]) -> list[dict[str, str]]:
    """The pictures without an answer, and why."""
    return [{"picture": each.picture, "reason": each.reason} for each in failures]


def failures_text(failures: Sequence[Failure]) -> list[str]:
    """The first pictures without an answer, in lines."""
    if not failures:
        return []
    lines = ["", f"{_counted(len(failures), 'picture')} failed"]
    lines += [f"  {each.picture}: {each.reason}" for each in failures[:_FAILURES_SHOWN]]
    more = len(failures) - _FAILURES_SHOWN
    return [*lines, f"  and {more:,} more, see --json"] if more > 0 else lines
