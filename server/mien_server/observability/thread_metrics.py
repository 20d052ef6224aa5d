"""How often the server's threads have died, as Prometheus reads it."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from mien_server.threads import Threads


class ThreadMetrics(Collector):
    """Collects `mien_thread_deaths_total`. Safe for threads."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample for each thread that the server keeps alive, also for those that never died."""
        deaths = CounterMetricFamily(
            "mien_thread_deaths",
            "How often a thread that the server cannot do without has died and begun anew.",
            labels=("thread",),
        )
        for name, count in self._threads.deaths().items():
            deaths.add_metric([name], count)
        yield deaths
