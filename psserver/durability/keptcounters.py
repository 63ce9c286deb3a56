"""The counters as JSON, for what outlasts a server.

What tells of the last seconds alone begins anew.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from psserver.counters import Counters, Tally, WorkerRow
from psserver.durability.jsonfields import count, counts, get, number
from pswire.counts import STALENESS_BUCKETS


def to_json(counters: Counters) -> dict[str, Any]:
    """Return all that `from_json` makes the same counters of."""
    return {
        "total": asdict(counters.total),
        "unjoined": asdict(counters.unjoined),
        "staleness": {str(age): n for age, n in counters.staleness.items()},
        "staleness_sum": counters.staleness_sum,
        "withheld": counters.withheld,
        "dropped_variables": counters.dropped_variables,
        "workers": {name: _row_to_json(row) for name, row in counters.rows.items()},
    }


def from_json(data: Mapping[str, Any], now: float) -> Counters:
    """Read what `to_json` has returned.

    Args:
        data: It, or anything else that JSON can say.
        now: When every worker counts as seen last, in seconds.

    Raises:
        ValueError: It is something else; the message begins with the field.
    """
    counters = Counters()
    counters.total = _tally(get(data, "total", dict))
    counters.unjoined = _tally(get(data, "unjoined", dict))
    staleness = counts(data, "staleness")
    counters.staleness = {int(age): pushes for age, pushes in staleness.items()}
    counters.staleness_sum = count(data, "staleness_sum")
    counters.withheld = number(data, "withheld") or 0.0
    counters.dropped_variables = count(
        {"dropped_variables": 0, **data}, "dropped_variables"
    )
    workers = get(data, "workers", dict)
    counters.rows = {name: _row(get(workers, name, dict), now) for name in workers}
    return counters


def _tally(data: Mapping[str, Any]) -> Tally:
    return Tally(
        applied=count(data, "applied"),
        dropped=count(data, "dropped"),
        duplicate=count(data, "duplicate"),
        rejected=counts(data, "rejected"),
        snapshot_gone=count({"snapshot_gone": 0, **data}, "snapshot_gone"),
    )


def _row_to_json(row: WorkerRow) -> dict[str, Any]:
    return {
        "tally": asdict(row.tally),
        "consecutive_drops": row.consecutive_drops,
        "longest_drops": row.longest_drops,
        "loss": row.loss,
        "staleness_sum": row.staleness_sum,
        "recently": row.recently,
        "staleness": dict(zip(STALENESS_BUCKETS, row.staleness_buckets, strict=True)),
    }


def _row(data: Mapping[str, Any], now: float) -> WorkerRow:
    buckets = get(data, "staleness", dict)
    return WorkerRow(
        last_seen=now,
        tally=_tally(get(data, "tally", dict)),
        consecutive_drops=count(data, "consecutive_drops"),
        longest_drops=count(data, "longest_drops"),
        loss=number(data, "loss"),
        staleness_sum=count(data, "staleness_sum"),
        recently=count(data, "recently"),
        staleness_buckets=[count(buckets, bound) for bound in STALENESS_BUCKETS],
    )
