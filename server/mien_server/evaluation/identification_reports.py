"""What an evaluation of identification found, for people and for machines."""

from typing import Any

from mien_server.evaluation.identification import OpenSetResult
from mien_server.evaluation.loaded import LoadedModels
from mien_server.evaluation.open_set import MATED_NEEDED, GalleryPoint
from mien_server.evaluation.persons import Persons
from mien_server.evaluation.reports import (
    failures_document,
    failures_text,
    models_document,
    verification_title,
)


def identification_document(
    loaded: LoadedModels, data: Persons, found: OpenSetResult
) -> dict[str, Any]:
    """An evaluation of identification as JSON's values; null where the data are insufficient."""
    return {
        **models_document(loaded),
        "source": data.source,
        "persons": found.persons,
        "enrolled_photos": found.enrolled,
        "searches": {"mated": found.mated, "strangers": found.strangers},
        "ranks": {
            str(rank): share and {"share": share.value, "low": share.low, "high": share.high}
            for rank, share in found.ranks.items()
        },
        "fnir_at_fpir": [_document(each) for each in found.points],
        "thresholds_by_size": [_document(each) for each in found.sizes],
        "failures": failures_document(found.failures),
    }


def _document(each: GalleryPoint) -> dict[str, Any]:
    return {
        "persons": each.size,
        "fpir": each.fpir,
        "threshold": each.threshold,
        "fnir": each.fnir,
        "extrapolated": each.extrapolated,
        "insufficient_data": each.threshold is None,
        "needed": each.needed,
    }


def identification_text(loaded: LoadedModels, data: Persons, found: OpenSetResult) -> str:
    """An evaluation of identification as a table."""
    lines = [verification_title(loaded), f"gallery     {gallery_text(data, found)}"]
    lines.append(
        f"searches    {found.mated:,} for persons who are enrolled, {found.strangers:,} for strangers"
    )
    for rank, share in found.ranks.items():
        told = f"insufficient data: {MATED_NEEDED} searches for enrolled persons needed"
        if share:
            told = f"{100 * share.value:.2f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
        lines.append(f"{f'rank {rank}':12}{told}")
    lines += ["", f"{'FPIR':>9}{'FNIR':>9}{'threshold':>12}"]
    lines += [f"{each.fpir:>9g}{_row(each)}" for each in found.points]
    fpir = found.sizes[0].fpir
    lines += ["", f"thresholds by size, for a FPIR of {fpir:g}"]
    lines.append(f"{'persons':>9}{'FNIR':>9}{'threshold':>12}")
    lines += [f"{each.size:>9,}{_row(each)}" for each in found.sizes]
    return "\n".join([*lines, *failures_text(found.failures)])


def gallery_text(data: Persons, found: OpenSetResult) -> str:
    """Who is enrolled."""
    photos = "one photo" if found.enrolled == 1 else f"up to {found.enrolled} photos"
    return f"{found.persons:,} persons by {photos} each, {data.source}"


def _row(each: GalleryPoint) -> str:
    if each.threshold is None:
        return f"   insufficient data: {each.needed} needed"
    fnir = "-" if each.fnir is None else f"{each.fnir:.4f}"
    note = "   larger than the data: taken on" if each.extrapolated else ""
    return f"{fnir:>9}{each.threshold:>12.4f}{note}"
