"""The figures of workers as Prometheus reads them, under a bounded number of labels."""

import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from psserver.metrics.families import histogram
from pswire.counts import STALENESS_BOUNDS, Counts, WorkerStatus
from pswire.status import Status, WorkerState

OTHERS = "(others)"
"""The label of all workers beyond the first ones, and of who is none or forgotten."""

_Workers = Mapping[str, Sequence[WorkerStatus]]
"""{label: who has it}."""


class WorkerFamilies:
    """Makes metrics of workers; who has a label once keeps it."""

    def __init__(self, max_labels: int) -> None:
        """Start.

        Args:
            max_labels: How many workers have a label of their own: those that are seen
                first; of those seen at once, the first by name.
        """
        self._max_labels = max_labels
        self._lock = threading.Lock()  # Guards `_labels`: scrapes may overlap.
        self._labels: set[str] = set()

    def of(self, status: Status, counted: Status) -> Iterator[Metric]:
        """Make them, all of one moment.

        Args:
            status: That moment's.
            counted: The same, with the counts that are told.
        """
        workers, rows = self._by_label(status), self._by_label(counted)
        rows.setdefault(OTHERS, []).append(_without_a_row(counted))
        yield _pushes(rows)
        yield _staleness(rows)
        yield _waits(rows)
        yield from _gauges(workers)
        yield _starved(workers, status)

    def _by_label(self, status: Status) -> dict[str, list[WorkerStatus]]:
        workers: dict[str, list[WorkerStatus]] = {}
        with self._lock:
            for worker in status.workers:
                workers.setdefault(self._label(worker.name), []).append(worker)
        return workers

    def _label(self, worker: str) -> str:
        # A counter that changed its meaning would be none: labels are never taken back.
        if len(self._labels) < self._max_labels and worker != OTHERS:
            self._labels.add(worker)
        return worker if worker in self._labels else OTHERS


def _without_a_row(status: Status) -> WorkerStatus:
    """Return what the totals have and no worker, as if it were another worker's."""
    rows = (worker.staleness_buckets for worker in status.workers)
    told = zip(status.staleness_buckets, *rows, strict=True)
    waited_s = status.waited_s - sum(worker.waited_s for worker in status.workers)
    return WorkerStatus(
        name=OTHERS,
        counts=status.unjoined,
        consecutive_drops=0,
        last_seen_s=math.inf,
        staleness_buckets=tuple(total - sum(parts) for total, *parts in told),
        staleness_sum=status.staleness_sum
        - sum(worker.staleness_sum for worker in status.workers),
        waited_s=max(0.0, waited_s),  # A sum of others is rounded otherwise.
    )


def _pushes(workers: _Workers) -> Metric:
    family = CounterMetricFamily(
        "asyncps_worker_pushes",
        "Pushes by worker and outcome; their sums are asyncps_pushes_total.",
        labels=["worker", "outcome"],
    )
    pushes = Counter[tuple[str, str]]()
    for label, sharers in workers.items():
        for worker in sharers:
            for outcome, number in _outcomes(worker.counts):
                pushes[label, outcome] += number
    for labels, number in pushes.items():
        family.add_metric(labels, number)
    return family


def _outcomes(counts: Counts) -> Iterator[tuple[str, int]]:
    yield "applied", counts.applied
    yield "dropped", counts.dropped
    yield "duplicate", counts.duplicate
    yield "rejected", sum(counts.rejected.values())


def _staleness(workers: _Workers) -> Metric:
    family = HistogramMetricFamily(
        "asyncps_worker_staleness_steps",
        "Staleness of judged pushes by worker; the sums are asyncps_staleness_steps.",
        labels=["worker"],
    )
    for label, sharers in workers.items():
        parts = zip(*(worker.staleness_buckets for worker in sharers), strict=True)
        total = sum(worker.staleness_sum for worker in sharers)
        buckets = histogram(STALENESS_BOUNDS, [*map(sum, parts)], total)
        family.add_metric([label], *buckets)
    return family


def _waits(workers: _Workers) -> Metric:
    family = CounterMetricFamily(
        "asyncps_worker_wait_seconds",
        "How long a worker's pulls have waited; the sums are asyncps_wait_seconds.",
        labels=["worker"],
    )
    for label, sharers in workers.items():
        family.add_metric([label], sum(worker.waited_s for worker in sharers))
    return family


def _starved(workers: _Workers, status: Status) -> Metric:
    family = GaugeMetricFamily(
        "asyncps_worker_starved",
        "How many of those with the label are starved: 0 or 1, but of a shared one.",
        labels=["worker"],
    )
    for label, sharers in workers.items():
        states = Counter(map(status.state, sharers))
        family.add_metric([label], states[WorkerState.STARVED])
    return family


def _gauges(workers: _Workers) -> Iterator[Metric]:
    drops = GaugeMetricFamily(
        "asyncps_worker_consecutive_drops",
        "Drops since the worker's last applied push; the most of a shared label.",
        labels=["worker"],
    )
    seen = GaugeMetricFamily(
        "asyncps_worker_last_seen_seconds",
        "Time since the worker's last call; the least of a shared label.",
        labels=["worker"],
    )
    for label, sharers in workers.items():
        drops.add_metric([label], max(w.consecutive_drops for w in sharers))
        seen.add_metric([label], min(w.last_seen_s for w in sharers))
    yield drops
    yield seen
