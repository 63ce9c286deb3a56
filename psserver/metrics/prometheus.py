"""The server's figures as Prometheus reads them."""

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from psserver.metrics.families import counter, gauge, histogram
from psserver.metrics.meter import SECONDS, Durations, Meter, Readings
from psserver.metrics.since import since
from psserver.metrics.workerfamilies import WorkerFamilies
from pswire.counts import STALENESS_BOUNDS
from pswire.status import Durability, Status, WorkerState

_MAX_LABELS = 100
_PUSH_PARTS = {
    "compute": "Of a judged push's age: from its snapshot's arrival to its start.",
    "wire": "Of a judged push's age: snapshot and push on their way.",
    "lock": "Of a judged push's age: waiting for other pushes to be applied.",
    "apply": "How long the rule took for an applied push.",
}


def exposer(
    read: Callable[[], Status],
    meter: Meter,
    *,
    first: Status,
    max_labels: int = _MAX_LABELS,
) -> Callable[[str], tuple[str, bytes]]:
    """Return what answers a scrape: of an Accept header, a content type and a body.

    Args:
        read: Returns the server's figures, all of one moment.
        meter: What measures its calls.
        first: The figures that this start of the server began with. Prometheus takes a
            counter that is lower than before for one that began from 0, so from 0 all
            of them begin.
        max_labels: How many workers have a label of their own: the first ones.
    """
    registry = CollectorRegistry(auto_describe=False)
    build = {
        "version": metadata.version("asyncps"),
        "jax": metadata.version("jax"),
        "python": platform.python_version(),
    }
    Info("asyncps_build", "What runs.", registry=registry).info(build)
    registry.register(_Figures(read, meter, first, WorkerFamilies(max_labels)))
    ProcessCollector(registry=registry)

    def expose(accept: str) -> tuple[str, bytes]:
        try:
            encode, content_type = choose_encoder(accept)
        except Exception:  # It cannot bear a version that is none.
            encode, content_type = choose_encoder("")
        return content_type, encode(registry)

    return expose


class _Figures(Collector):
    def __init__(
        self,
        read: Callable[[], Status],
        meter: Meter,
        first: Status,
        workers: WorkerFamilies,
    ) -> None:
        self._read = read
        self._meter = meter
        self._first = first
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        status = self._read()  # Once a scrape, so that all adds up.
        counted = since(status, self._first)
        yield from _about(status)
        yield from _totals(counted)
        yield counter(
            "asyncps_withheld_pushes",
            "What factors left out of applied pushes: the sum of 1 - factor.",
            status.withheld - self._first.withheld,
        )
        yield counter(
            "asyncps_dropped_variables",
            "Variables that applied pushes were applied without.",
            status.dropped_variables - self._first.dropped_variables,
        )
        yield counter(
            "asyncps_wait_seconds",
            "How long pulls have waited for their workers' turns.",
            status.waited_s,
        )
        yield _staleness(counted)
        yield from self._workers.of(status, counted)
        yield from _kept(status.durability)
        yield from _measured(self._meter.read())


def _about(status: Status) -> Iterator[Metric]:
    server = {
        "name": status.name,
        "generation": status.generation,
        "incarnation": status.incarnation,
        "rule": status.rule,
        "durability": status.durability.mode,
    }
    limit = status.limits.max_staleness
    yield InfoMetricFamily(
        "asyncps_server",
        "Its name, the history of its steps, and the start that counters count from.",
        server,
    )
    yield gauge("asyncps_max_staleness_steps", "The limit; absent: none.", limit)
    yield InfoMetricFamily(
        "asyncps_staleness_policy",
        "What becomes of the pushes that the limit admits.",
        {"policy": status.limits.staleness_policy},
    )
    yield gauge(
        "asyncps_limit_now_steps",
        "The limit now: lower where the policy is adaptive; absent: none.",
        status.limit_now,
    )
    yield gauge("asyncps_step", "The step: updates made so far.", status.step)
    states = Counter(map(status.state, status.workers))
    workers = GaugeMetricFamily(
        "asyncps_workers", "Workers by what they seem to be up to.", labels=["state"]
    )
    for state in WorkerState:
        workers.add_metric([state], states[state])
    yield workers


def _totals(status: Status) -> Iterator[Metric]:
    counts = status.counts
    pushes = CounterMetricFamily(
        "asyncps_pushes",
        "Pushes by what became of them, and why.",
        labels=["outcome", "reason"],
    )
    pushes.add_metric(["applied", ""], counts.applied)
    gone = counts.snapshot_gone
    pushes.add_metric(["dropped", "STALE"], counts.dropped - gone)
    pushes.add_metric(["dropped", "SNAPSHOT_GONE"], gone)
    pushes.add_metric(["duplicate", ""], counts.duplicate)
    for reason, number in counts.rejected.items():
        pushes.add_metric(["rejected", reason], number)
    yield pushes
    yield gauge(
        "asyncps_drop_ratio", "Dropped / (applied + dropped) pushes.", counts.drop_rate
    )
    yield gauge("asyncps_loss", "Mean of the newest losses told.", status.loss)


def _staleness(status: Status) -> Metric:
    family = HistogramMetricFamily(
        "asyncps_staleness_steps", "Staleness of judged pushes, dropped ones too."
    )
    buckets = status.staleness_buckets
    family.add_metric([], *histogram(STALENESS_BOUNDS, buckets, status.staleness_sum))
    return family


def _kept(durability: Durability) -> Iterator[Metric]:
    if durability.mode == "none":
        return
    yield gauge(
        "asyncps_checkpoint_step",
        "The step of the newest checkpoint; absent: there is none.",
        durability.saved_step,
    )
    yield gauge(
        "asyncps_checkpoint_age_seconds",
        "Time since it was saved, or the server went on from it.",
        durability.saved_s,
    )
    yield counter("asyncps_checkpoint_saves", "Checkpoints saved.", durability.saves)
    yield counter(
        "asyncps_checkpoint_failures",
        "Checkpoints that could not be saved.",
        durability.failures,
    )
    yield gauge(
        "asyncps_checkpoint_corrupt",
        "Checkpoints that this start has set aside as corrupt.",
        durability.corrupt,
    )
    yield gauge(
        "asyncps_log_bytes",
        "Of the log since the newest checkpoint was begun.",
        durability.log_nbytes,
    )
    yield counter(
        "asyncps_log_syncs",
        "How often the log has waited for the disk.",
        durability.log_syncs,
    )


def _measured(readings: Readings) -> Iterator[Metric]:
    for part, help_text in _PUSH_PARTS.items():
        family = HistogramMetricFamily(f"asyncps_push_{part}_seconds", help_text)
        family.add_metric([], *_durations(readings.pushes[part]))
        yield family
    calls = HistogramMetricFamily(
        "asyncps_rpc_seconds",
        "How long the server took for calls.",
        labels=["path", "method", "code"],
    )
    for labels, durations in sorted(readings.calls.items()):
        calls.add_metric(labels, *_durations(durations))
    yield calls
    yield _bytes("received", "Bytes of requests, bodies included.", readings.received)
    yield _bytes("sent", "Bytes of replies, bodies included.", readings.sent)


def _bytes(way: str, help_text: str, moved: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(
        f"asyncps_{way}_bytes", help_text, labels=["path", "method"]
    )
    for labels, nbytes in sorted(moved.items()):
        family.add_metric(labels, nbytes)
    return family


def _durations(durations: Durations) -> tuple[list[tuple[str, float]], float]:
    return histogram(SECONDS, durations.counts, durations.total_s)
