"""Prometheus's families of metrics, made of plain values."""

from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)


def gauge(name: str, help_text: str, value: float | None) -> Metric:
    """Return a gauge without labels; None: there is no value now."""
    family = GaugeMetricFamily(name, help_text)
    if value is not None:
        family.add_metric([], value)
    return family


def counter(name: str, help_text: str, value: float) -> Metric:
    """Return a counter without labels; Prometheus adds `_total` to its name."""
    return CounterMetricFamily(name, help_text, value)


def histogram(
    bounds: Sequence[float], counts: Sequence[int], total: float
) -> tuple[list[tuple[str, float]], float]:
    """Return buckets, each with those before it, and the sum: what a family takes.

    Args:
        bounds: Ascending, inclusive.
        counts: How many there are of up to each bound, less those of the bounds
            before, and of the rest.
        total: The sum of all that was counted.
    """
    names = (*(str(float(bound)) for bound in bounds), "+Inf")
    return [*zip(names, map(float, accumulate(counts)), strict=True)], total
