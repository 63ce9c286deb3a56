"""What has been counted since an earlier moment."""

from collections import Counter
from dataclasses import replace
from functools import reduce
from typing import TypeVar

from psserver.report.samples import Moment, WorkerMoment
from pswire.counts import Counts, WorkerStatus
from pswire.status import Status

Figures = TypeVar("Figures", Status, Moment)
_Row = TypeVar("_Row", WorkerStatus, WorkerMoment)


def since(now: Figures, earlier: Figures) -> Figures:
    """Return `now` with what was counted since an earlier moment of the same start.

    Workers and who is none still add up to the totals. A row that was forgotten since
    and began anew has only what it has more than before; the rest is of none.
    """
    before = {worker.name: worker for worker in earlier.workers}
    workers = tuple(
        _row_since(worker, before[worker.name]) if worker.name in before else worker
        for worker in now.workers
    )
    counts = now.counts.since(earlier.counts)
    return replace(
        now,
        counts=counts,
        staleness=Counter(now.staleness) - Counter(earlier.staleness),
        staleness_sum=now.staleness_sum - earlier.staleness_sum,
        workers=workers,
        unjoined=reduce(Counts.since, (each.counts for each in workers), counts),
    )


def _row_since(now: _Row, earlier: _Row) -> _Row:
    buckets = zip(now.staleness_buckets, earlier.staleness_buckets, strict=True)
    return replace(
        now,
        counts=now.counts.since(earlier.counts),
        staleness_buckets=tuple(max(0, n - before) for n, before in buckets),
        staleness_sum=max(0, now.staleness_sum - earlier.staleness_sum),
    )
