"""The workers of a run, each summed up over the server's starts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from psserver.report.samples import WorkerMoment
from psserver.report.starts import Start
from psserver.report.sums import add_counts, mean_staleness, middle
from pswire.counts import STALENESS_BOUNDS

BUCKETS = (
    "0",
    *(
        f"{bound}" if bound == below + 1 else f"{below + 1}-{bound}"
        for below, bound in pairwise(STALENESS_BOUNDS)
    ),
    f"{STALENESS_BOUNDS[-1] + 1}+",
)
"""What each number of a worker's staleness counts: pushes so many steps old."""


def workers(starts: Sequence[Start]) -> list[dict[str, Any]]:
    """Return a row for every worker of any start, by name."""
    rows: dict[str, list[WorkerMoment]] = {}
    for start in starts:
        for worker in start.counted.workers:
            rows.setdefault(worker.name, []).append(worker)
    starved_s = {
        name: sum(start.starved_s.get(name, 0.0) for start in starts) for name in rows
    }
    states = {worker.name: worker.state for worker in starts[-1].last.workers}
    return [
        {
            **_sum_up(rows[name]),
            "state": states.get(name),
            "starved_s": starved_s[name],
        }
        for name in sorted(rows)
    ]


def _sum_up(rows: Sequence[WorkerMoment]) -> dict[str, Any]:
    columns = zip(*(row.staleness_buckets for row in rows), strict=True)
    buckets = [sum(column) for column in columns]
    median = middle(buckets)
    return {
        "name": rows[-1].name,
        **add_counts(row.counts for row in rows).to_json(),
        "longest_drops": max(row.longest_drops for row in rows),
        "loss": rows[-1].loss,
        "staleness": buckets,
        "mean_staleness": mean_staleness(rows),
        "median_staleness": None if median is None else BUCKETS[median],
    }
