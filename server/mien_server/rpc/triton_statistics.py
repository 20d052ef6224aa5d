"""What slots and ensembles have done, as Triton's ModelStatistics says it. Pure functions and counters."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from tritonclient.grpc import service_pb2 as triton

from mien_server.pipeline.types import StageTime
from mien_server.repository.ensembles import ENSEMBLE_VERSION
from mien_server.repository.traffic import TrafficStatistics
from mien_server.repository.versions import ReadyModel
from mien_server.scheduling.interface import Timing
from mien_server.scheduling.statistics import StageSeconds

_NANOSECONDS_PER_SECOND = 1_000_000_000
_MILLISECONDS_PER_SECOND = 1_000


@dataclass(slots=True)
class EnsembleStatistics:
    """What an ensemble has done. Used from the event loop only.

    Attributes:
        succeeded: requests answered.
        seconds: that those took.
        failed: requests that were not.
        failed_seconds: that those took.
        photos: in the requests that were answered.
        served: the steps that those went through, of each request the mean over its photos.
        last_success: when one was last answered, by `time.monotonic()`, or None.
    """

    succeeded: int = 0
    seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0
    photos: int = 0
    served: StageSeconds = field(default_factory=StageSeconds)
    last_success: float | None = None

    def record_success(self, photos: int, seconds: float, stages: Iterable[StageTime]) -> None:
        """Counts a request that was answered, with the stages of all of its photos, which ran at once."""
        self.succeeded += 1
        self.seconds += seconds
        self.photos += photos
        spent = dict.fromkeys(("queue", "preprocess", "compute", "postprocess"), 0.0)
        for stage in stages:
            step = stage.name.rpartition(".")[2]
            # Decoding, letterboxing and aligning are what an ensemble does before its networks.
            spent[step if step in spent else "preprocess"] += stage.seconds / photos
        self.served.add(Timing(**spent, batch_rows=photos))
        self.last_success = time.monotonic()

    def record_failure(self, seconds: float) -> None:
        """Counts a request that was not."""
        self.failed += 1
        self.failed_seconds += seconds


def slot_message(model: ReadyModel, traffic: TrafficStatistics) -> triton.ModelStatistics:
    """The `inference.ModelStatistics` of one version of a model.

    Durations are sums over requests, each with all of its batch's time, as Triton's; those of
    `batch_stats` are sums over batches. `fail` counts what was refused, expired or cancelled, too, and has
    no duration. Where the model splits its traffic, `response_stats` says what this version got of it:
    the counts of `success` under the keys of `_traffic`.
    """
    figures = model.slot.statistics()
    lost = figures.failed + figures.expired + figures.rejected + figures.cancelled
    message = triton.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=_epoch_milliseconds(figures.last_success),
        inference_count=figures.rows,
        execution_count=figures.batches,
        inference_stats=triton.InferStatistics(
            success=_duration(figures.succeeded, figures.latency.seconds),
            fail=_duration(lost, 0.0),
            queue=_duration(figures.served.count, figures.served.queue),
            **_compute(figures.served),
        ),
    )
    for size, spent in sorted(figures.batch_seconds.items()):
        message.batch_stats.add(batch_size=size, **_compute(spent))
    if model.config.traffic.candidates:
        for key, count in _traffic(model.version, traffic).items():
            message.response_stats[key].success.count = count
    return message


def _traffic(version: int, traffic: TrafficStatistics) -> dict[str, int]:
    """Calls that named no version and got this one; if it is a shadow, the rows that it got copies of."""
    counts = {"routed": traffic.routed[version]}
    if shadow := traffic.shadows.get(version):
        counts |= {f"shadow_{key}": count for key, count in asdict(shadow).items()}
    return counts


def ensemble_message(name: str, figures: EnsembleStatistics) -> triton.ModelStatistics:
    """The `inference.ModelStatistics` of an ensemble."""
    return triton.ModelStatistics(
        name=name,
        version=str(ENSEMBLE_VERSION),
        last_inference=_epoch_milliseconds(figures.last_success),
        inference_count=figures.photos,
        execution_count=figures.succeeded,
        inference_stats=triton.InferStatistics(
            success=_duration(figures.succeeded, figures.seconds),
            fail=_duration(figures.failed, figures.failed_seconds),
            queue=_duration(figures.served.count, figures.served.queue),
            **_compute(figures.served),
        ),
    )


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
