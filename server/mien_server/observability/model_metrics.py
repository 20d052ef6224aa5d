"""What models and slots have done, as Prometheus reads it: Triton's metrics under Triton's names, and mien's.

Nothing is counted here: each scrape reads what the slots count anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mien_server.errors import GalleryUnavailable
from mien_server.gallery.interface import AnyStore, OpenCollection
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.entries import Sleeper
from mien_server.repository.statistics import InferenceTotals, VersionStatistics
from mien_server.repository.versions import State, VersionStatus
from mien_server.scheduling.statistics import DURATION_BOUNDS, DurationHistogram, SlotStatistics

_MICROSECONDS_PER_SECOND = 1_000_000

BATCH_ROWS_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the buckets of batch sizes, in rows."""

_VERSION = ("model", "version")


def _microseconds(seconds: float) -> int:
    return round(seconds * _MICROSECONDS_PER_SECOND)


_TRITON: tuple[tuple[str, str, Callable[[InferenceTotals], int]], ...] = (
    ("request_success", "Requests answered.", lambda totals: totals.succeeded),
    (
        "request_failure",
        "Requests that failed, were refused, expired or were cancelled.",
        lambda totals: totals.failed,
    ),
    ("count", "Rows computed: crops, canvases, photos of an ensemble.", lambda totals: totals.rows),
    ("exec_count", "Batches computed.", lambda totals: totals.executions),
    (
        "request_duration_us",
        "Microseconds that the requests answered took, from the door of the queue.",
        lambda totals: _microseconds(totals.seconds),
    ),
    (
        "queue_duration_us",
        "Microseconds that they waited in the queue.",
        lambda totals: _microseconds(totals.served.queue),
    ),
    (
        "compute_input_duration_us",
        "Microseconds in which their batches were collated.",
        lambda totals: _microseconds(totals.served.preprocess),
    ),
    (
        "compute_infer_duration_us",
        "Microseconds that their batches spent in the network.",
        lambda totals: _microseconds(totals.served.compute),
    ),
    (
        "compute_output_duration_us",
        "Microseconds in which their batches' outputs were read.",
        lambda totals: _microseconds(totals.served.postprocess),
    ),
)


class ModelMetrics(Collector):
    """Collects the metrics of all models and galleries. Safe for threads.

    Args:
        models: what there is.
        galleries: likewise; None: none.
    """

    def __init__(self, models: Catalogue, galleries: AnyStore | None = None) -> None:
        self._models = models
        self._galleries = galleries

    def collect(self) -> Iterator[Metric]:
        """Every family, whether or not there is a model to have a sample in it."""
        statistics = self._models.statistics()
        slots = [(_labels(each), each.slot) for each in statistics if each.slot]
        collections = self._collections()
        slots += [([c.slot.name, ""], c.slot.statistics()) for c in collections if c.slot]
        yield from _states(self._models.statuses())
        yield from _sleepers(self._models.sleepers())
        yield from _triton(statistics)
        yield from _requests(slots)
        yield from _batches(slots)
        yield from _traffic(statistics)
        yield from _galleries(collections)

    def _collections(self) -> Sequence[OpenCollection]:
        try:
            return self._galleries.collections() if self._galleries else []
        except GalleryUnavailable:  # the other figures are there
            return []


_Slots = Sequence[tuple[list[str], SlotStatistics]]


def _labels(figures: VersionStatistics) -> list[str]:
    return [figures.name, str(figures.version)]


def _galleries(collections: Sequence[OpenCollection]) -> Iterator[Metric]:
    faces = GaugeMetricFamily("mien_gallery_faces", "Faces enrolled.", labels=("collection",))
    nbytes = GaugeMetricFamily(
        "mien_gallery_bytes", "Bytes of memory that they take.", labels=("collection",)
    )
    for each in collections:
        faces.add_metric([each.collection.name], each.faces)
        nbytes.add_metric([each.collection.name], each.nbytes)
    yield from (faces, nbytes)


def _states(statuses: Sequence[VersionStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "mien_model_state",
        "1 for the state that a version is in; version is empty where none of the model is known.",
        labels=(*_VERSION, "state"),
    )
    stale = GaugeMetricFamily(
        "mien_model_reload_failed",
        "1 if a version serves on because loading it again failed, else 0.",
        labels=_VERSION,
    )
    for status in statuses:
        labels = [status.name, str(status.version or "")]
        state.add_metric([*labels, status.state.value], 1)
        if status.state is State.READY:
            stale.add_metric(labels, bool(status.model and status.reason))
    yield from (state, stale)


def _sleepers(sleepers: Sequence[Sleeper]) -> Iterator[Metric]:
    asleep = GaugeMetricFamily(
        "mien_model_asleep",
        "1 if a model is unloaded because nobody calls it; only of those with idle_unload_secs.",
        labels=("model",),
    )
    slept = CounterMetricFamily(
        "mien_model_sleeps",
        "How often it was unloaded because nobody called it.",
        labels=("model",),
    )
    woken = CounterMetricFamily(
        "mien_model_wakes", "How often a call had it loaded again.", labels=("model",)
    )
    for each in sleepers:
        asleep.add_metric([each.name], each.asleep)
        slept.add_metric([each.name], each.slept)
        woken.add_metric([each.name], each.woken)
    yield from (asleep, slept, woken)


def _triton(statistics: Sequence[VersionStatistics]) -> Iterator[Metric]:
    for name, what, read in _TRITON:
        counter = CounterMetricFamily(f"nv_inference_{name}", what, labels=_VERSION)
        for figures in statistics:
            counter.add_metric(_labels(figures), read(figures.totals))
        yield counter
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count",
        "Requests that wait in the slot's queue.",
        labels=_VERSION,
    )
    for figures in statistics:
        if figures.slot:
            pending.add_metric(_labels(figures), figures.pending)
    yield pending


def _requests(slots: _Slots) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "mien_slot_requests",
        "Requests of a slot by how they ended: succeeded, failed, expired, cancelled, rejected.",
        labels=(*_VERSION, "outcome"),
    )
    latency = HistogramMetricFamily(
        "mien_slot_request_seconds",
        "Of the requests that succeeded, from the door of the queue to their results.",
        labels=_VERSION,
    )
    queue = HistogramMetricFamily(
        "mien_slot_queue_seconds", "The wait of each request in the queue.", labels=_VERSION
    )
    for labels, slot in slots:
        for outcome in ("succeeded", "failed", "expired", "cancelled", "rejected"):
            ended.add_metric([*labels, outcome], getattr(slot, outcome))
        _add_durations(latency, labels, slot.latency)
        _add_durations(queue, labels, slot.queue)
    yield from (ended, latency, queue)


def _batches(slots: _Slots) -> Iterator[Metric]:
    rows = HistogramMetricFamily("mien_batch_rows", "Rows of each batch.", labels=_VERSION)
    closed = CounterMetricFamily(
        "mien_batches",
        "Batches by the reason for which they closed; docs/batching.md explains them.",
        labels=(*_VERSION, "reason"),
    )
    seconds = HistogramMetricFamily(
        "mien_batch_seconds",
        "Of each batch, by step: preprocess, compute, postprocess.",
        labels=(*_VERSION, "step"),
    )
    isolated = CounterMetricFamily(
        "mien_batches_isolated",
        "Batches that raised, whose rows then ran one by one.",
        labels=_VERSION,
    )
    deaths = CounterMetricFamily(
        "mien_executor_deaths",
        "Executor threads that died in a batch of the slot.",
        labels=_VERSION,
    )
    for labels, slot in slots:
        _add_rows(rows, labels, slot)
        for reason, count in sorted(slot.close_reasons.items()):
            closed.add_metric([*labels, reason.value], count)
        for step in ("preprocess", "compute", "postprocess"):
            _add_durations(seconds, [*labels, step], getattr(slot, step))
        isolated.add_metric(labels, slot.isolated)
        deaths.add_metric(labels, slot.executor_deaths)
    yield from (rows, closed, seconds, isolated, deaths)


def _traffic(statistics: Sequence[VersionStatistics]) -> Iterator[Metric]:
    routed = CounterMetricFamily(
        "mien_routed_calls",
        "Calls that named no version and got this one; only of models that split their traffic.",
        labels=_VERSION,
    )
    shadowed = CounterMetricFamily(
        "mien_shadow_rows",
        "Rows that a shadow got copies of: its answer agreed or disagreed, it failed, or they were"
        " dropped because there was other work to do.",
        labels=(*_VERSION, "outcome"),
    )
    for figures in statistics:
        if figures.traffic is None:
            continue
        routed.add_metric(_labels(figures), figures.traffic.routed[figures.version])
        if shadow := figures.traffic.shadows.get(figures.version):
            outcomes = {
                "agreed": shadow.agreed,
                "disagreed": shadow.compared - shadow.agreed,
                "failed": shadow.failed,
                "dropped": shadow.dropped,
            }
            for outcome, count in outcomes.items():
                shadowed.add_metric([*_labels(figures), outcome], count)
    yield from (routed, shadowed)


def _add_durations(
    family: HistogramMetricFamily, labels: Sequence[str], durations: DurationHistogram
) -> None:
    _add_histogram(family, labels, DURATION_BOUNDS, durations.buckets, durations.seconds)


def _add_rows(family: HistogramMetricFamily, labels: Sequence[str], slot: SlotStatistics) -> None:
    counts = [0] * (len(BATCH_ROWS_BOUNDS) + 1)
    for rows, batches in slot.batch_sizes.items():
        counts[sum(bound < rows for bound in BATCH_ROWS_BOUNDS)] += batches
    total = sum(rows * batches for rows, batches in slot.batch_sizes.items())
    _add_histogram(family, labels, BATCH_ROWS_BOUNDS, counts, total)


def _add_histogram(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
) -> None:
    """Adds one histogram: how many per bucket, one more of them than bounds, and the sum of all values."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    family.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), total)
