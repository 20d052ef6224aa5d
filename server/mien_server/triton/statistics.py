"""Makes Triton's ModelStatistics of what versions have done. Pure functions."""

import time
from collections.abc import Iterable
from dataclasses import asdict

from tritonclient.grpc import service_pb2 as triton

from mien_server.pipeline.types import StageTime
from mien_server.repository.statistics import VersionStatistics
from mien_server.repository.traffic import TrafficStatistics
from mien_server.scheduling.interface import Timing
from mien_server.scheduling.statistics import StageSeconds

_NANOSECONDS_PER_SECOND = 1_000_000_000
_MILLISECONDS_PER_SECOND = 1_000


def statistics_message(figures: VersionStatistics) -> triton.ModelStatistics:
    """The `inference.ModelStatistics` of one version of a model, or of an ensemble.

    As in Triton, durations are sums over requests, and each request counts all of its batch's time; those
    of `batch_stats` are sums over batches. `fail` also counts what was refused, expired or cancelled, and
    has a duration for ensembles only. Where the model splits its traffic, `response_stats` says what this
    version got of it, as counts of `success` under the keys of `_traffic`.
    """
    totals = figures.totals
    message = triton.ModelStatistics(
        name=figures.name,
        version=str(figures.version),
        last_inference=_epoch_milliseconds(totals.last_success),
        inference_count=totals.rows,
        execution_count=totals.executions,
        inference_stats=triton.InferStatistics(
            success=_duration(totals.succeeded, totals.seconds),
            fail=_duration(totals.failed, totals.failed_seconds),
            queue=_duration(totals.served.count, totals.served.queue),
            **_compute(totals.served),
        ),
    )
    if figures.slot:
        for size, spent in sorted(figures.slot.batch_seconds.items()):
            message.batch_stats.add(batch_size=size, **_compute(spent))
    if figures.traffic:
        for key, count in _traffic(figures.version, figures.traffic).items():
            message.response_stats[key].success.count = count
    return message


def ensemble_timing(stages: Iterable[StageTime], photos: int) -> Timing:
    """The steps of an ensemble's request: the mean over its photos, which ran side by side.

    Args:
        stages: those of all photos.
        photos: how many there were, at least 1.
    """
    spent = dict.fromkeys(("queue", "preprocess", "compute", "postprocess"), 0.0)
    for stage in stages:
        step = stage.name.rpartition(".")[2]
        # Decoding, letterboxing and aligning are what an ensemble does before its networks.
        spent[step if step in spent else "preprocess"] += stage.seconds / photos
    queue, preprocess, compute, postprocess = spent.values()
    return Timing(queue, preprocess, compute, postprocess, batch_rows=photos)


def _traffic(version: int, traffic: TrafficStatistics) -> dict[str, int]:
    """How many calls that named no version got this one and, if it is a shadow, how its copies fared."""
    counts = {"routed": traffic.routed[version]}
    if shadow := traffic.shadows.get(version):
        counts |= {f"shadow_{key}": count for key, count in asdict(shadow).items()}
    return counts


def _compute(spent: StageSeconds) -> dict[str, triton.StatisticDuration]:
    return {
        "compute_input": _duration(spent.count, spent.preprocess),
        "compute_infer": _duration(spent.count, spent.compute),
        "compute_output": _duration(spent.count, spent.postprocess),
    }


def _duration(count: int, seconds: float) -> triton.StatisticDuration:
    return triton.StatisticDuration(count=count, ns=round(seconds * _NANOSECONDS_PER_SECOND))


def _epoch_milliseconds(moment: float | None) -> int:
    """A moment of the monotonic clock as milliseconds since 1970; 0 for None."""
    if moment is None:
        return 0
    return round((time.time() - (time.monotonic() - moment)) * _MILLISECONDS_PER_SECOND)
