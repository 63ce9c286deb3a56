"""Sums over the starts of a server."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from psserver.report.samples import Moment, WorkerMoment
from pswire.counts import Counts


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Add up what became of pushes."""
    rows = list(counts)
    return Counts(
        applied=sum(row.applied for row in rows),
        dropped=sum(row.dropped for row in rows),
        duplicate=sum(row.duplicate for row in rows),
        rejected=add_tables(row.rejected for row in rows),
        snapshot_gone=sum(row.snapshot_gone for row in rows),
    )


def add_tables(tables: Iterable[Mapping[Any, int]]) -> Counter[Any]:
    """Add up the numbers that stand under the same key."""
    total: Counter[Any] = Counter()
    for table in tables:
        total.update(table)
    return total


def mean_staleness(rows: Sequence[Moment] | Sequence[WorkerMoment]) -> float | None:
    """Return the mean staleness of all judged pushes, in steps; None: of none."""
    judged = sum(row.counts.judged for row in rows)
    return sum(row.staleness_sum for row in rows) / judged if judged else None


def middle(numbers: Sequence[int]) -> int | None:
    """Return the first index up to which half of all are, or more; None: all are 0."""
    half = sum(numbers) / 2
    reached = (i for i, seen in enumerate(accumulate(numbers)) if seen >= half)
    return next(reached) if half else None
