"""The counting of pushes: in all, and for every worker."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from psserver.policies.adaptive import WINDOW
from psserver.recent import Recent
from pswire.counts import STALENESS_BOUNDS, Counts, WorkerStatus
from pswire.errors import ParameterServerError, reason
from pswire.status import SILENT_S
from pswire.values import Reason, Verdict

_EXACT = 1000  # Steps.
_LAST_TWENTY = 2**20 - 1
_REMEMBERED_S = 3600.0
_BEFORE_S = 1.0  # A start of the server, or more: nobody has noted it.


@dataclass(slots=True)
class Tally:
    """What became of some pushes, while they are being counted."""

    applied: int = 0
    dropped: int = 0
    duplicate: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    snapshot_gone: int = 0

    def copy(self) -> "Tally":
        return replace(self, rejected=self.rejected.copy())

    def add(self, outcome: Verdict | ParameterServerError) -> None:
        if isinstance(outcome, ParameterServerError):
            why = reason(outcome)
            self.rejected[why] = self.rejected.get(why, 0) + 1
        elif outcome.duplicate:
            self.duplicate += 1
        elif outcome.applied:
            self.applied += 1
        else:
            self.dropped += 1
            self.snapshot_gone += outcome.reason is Reason.SNAPSHOT_GONE

    def merge(self, other: "Tally") -> None:
        self.applied += other.applied
        self.dropped += other.dropped
        self.duplicate += other.duplicate
        self.snapshot_gone += other.snapshot_gone
        for why, pushes in other.rejected.items():
            self.rejected[why] = self.rejected.get(why, 0) + pushes

    def freeze(self) -> Counts:
        return Counts(
            applied=self.applied,
            dropped=self.dropped,
            duplicate=self.duplicate,
            rejected=dict(sorted(self.rejected.items())),
            snapshot_gone=self.snapshot_gone,
        )


@dataclass(slots=True)
class WorkerRow:
    """One worker's tally, its runs of drops, and when it last called."""

    last_seen: float
    tally: Tally = field(default_factory=Tally)
    recent: Recent = field(default_factory=Recent)
    consecutive_drops: int = 0
    longest_drops: int = 0
    loss: float | None = None
    staleness_sum: int = 0
    waited_s: float = 0.0
    recently: int = 0
    """A bit for each of its last judged pushes, the newest lowest: it was dropped."""
    staleness_buckets: list[int] = field(
        default_factory=lambda: [0] * (len(STALENESS_BOUNDS) + 1)
    )

    def copy(self) -> "WorkerRow":
        return WorkerRow(
            *(self.last_seen, self.tally.copy(), self.recent.copy()),
            *(self.consecutive_drops, self.longest_drops, self.loss),
            *(self.staleness_sum, self.waited_s),
            *(self.recently, self.staleness_buckets.copy()),
        )

    def judge(self, verdict: Verdict, loss: float | None, now: float) -> None:
        """Note a verdict that is no duplicate."""
        self.recent.add(verdict.applied, loss, now, makes_step=verdict.applied)
        self.staleness_buckets[bisect_left(STALENESS_BOUNDS, verdict.staleness)] += 1
        self.staleness_sum += verdict.staleness
        self.recently = (self.recently << 1 | (not verdict.applied)) & _LAST_TWENTY
        if loss is not None:
            self.loss = loss
        if verdict.applied:
            self.consecutive_drops = 0
            return
        self.consecutive_drops += 1
        self.longest_drops = max(self.longest_drops, self.consecutive_drops)

    def freeze(
        self, name: str, now: float, uptime_s: float, shard: str, waiting: bool
    ) -> WorkerStatus:
        return WorkerStatus(
            name=name,
            counts=self.tally.freeze(),
            consecutive_drops=self.consecutive_drops,
            last_seen_s=max(0.0, now - self.last_seen),
            longest_drops=self.longest_drops,
            pushes_per_s=self.recent.rates(now, uptime_s).pushes_per_s,
            loss=self.loss,
            staleness_buckets=tuple(self.staleness_buckets),
            staleness_sum=self.staleness_sum,
            recent_drops=self.recently.bit_count(),
            shard=shard,
            waiting=waiting,
            waited_s=self.waited_s,
        )


class Counters:
    """All that the server counts; whoever owns it guards it.

    Every push is counted once, by what became of it, so the sums reconcile: received
    is applied + dropped + duplicate + rejected, and the workers' rows and that of
    callers who never joined, or are forgotten, add up to the totals.
    """

    def __init__(self) -> None:
        self.total = Tally()
        self.unjoined = Tally()
        self.staleness: dict[int, int] = {}
        self.staleness_sum = 0
        self.withheld = 0.0
        self.dropped_variables = 0
        self.waited_s = 0.0
        self._step = 0  # The newest that was told of here.
        self.recent = Recent()
        self.recent_staleness = deque[int](maxlen=WINDOW)
        self.rows: dict[str, WorkerRow] = {}

    def copy(self) -> Self:
        """Return all of it as it is now."""
        copy = type(self)()
        copy.total, copy.unjoined = self.total.copy(), self.unjoined.copy()
        copy.staleness = self.staleness.copy()
        copy.staleness_sum = self.staleness_sum
        copy.withheld = self.withheld
        copy.dropped_variables = self.dropped_variables
        copy.waited_s = self.waited_s
        copy._step = self._step
        copy.recent = self.recent.copy()
        copy.recent_staleness = self.recent_staleness.copy()
        copy.rows = {name: row.copy() for name, row in self.rows.items()}
        return copy

    def go_on(self, started: float) -> None:
        """Count on in another start of the server, which nobody has called yet.

        Args:
            started: When it began, in seconds.
        """
        self.recent = Recent()
        self.recent_staleness.clear()
        for row in self.rows.values():
            row.recent, row.last_seen = Recent(), started - _BEFORE_S

    def join(self, worker: str, now: float) -> None:
        """Start a worker's row, or find it again."""
        self.rows.setdefault(worker, WorkerRow(last_seen=now))
        self.see(worker, now)

    def forget_silent(self, now: float, but: Collection[str] = ()) -> list[str]:
        """Forget who has not called for an hour; what they have counted stays.

        Args:
            now: Seconds.
            but: Workers of whom something is still to be counted.

        Returns:
            Their names.
        """
        silent = [
            worker
            for worker, row in self.rows.items()
            if now - row.last_seen > _REMEMBERED_S and worker not in but
        ]
        for worker in silent:
            self.unjoined.merge(self.rows.pop(worker).tally)
        return silent

    def is_silent(self, worker: str, now: float) -> bool:
        """Say whether a joined worker has not called for a minute."""
        return now - self.rows[worker].last_seen > SILENT_S

    def see(self, worker: str, now: float) -> None:
        """Note that a joined worker has called."""
        row = self.rows.get(worker)
        if row:  # None while another thread is just about to make or to forget it.
            row.last_seen = now

    def waited(self, worker: str, seconds: float) -> None:
        """Add to how long a joined worker's pulls have waited for their turns."""
        self.waited_s += seconds
        self.rows[worker].waited_s += seconds

    def reject(self, worker: str | None, error: ParameterServerError) -> None:
        """Count a push that got no verdict.

        Args:
            worker: Who pushed; None: somebody who never joined.
            error: What rejected it.
        """
        self.total.add(error)
        (self.unjoined if worker is None else self.rows[worker].tally).add(error)

    def judge(
        self, worker: str, verdict: Verdict, value: float | None, now: float
    ) -> None:
        """Count a push by its verdict.

        Args:
            worker: Who pushed.
            verdict: What became of it.
            value: The loss that it told, if any.
            now: Seconds, of a clock that never goes back.
        """
        row = self.rows[worker]
        self.total.add(verdict)
        row.tally.add(verdict)
        if not verdict.duplicate:
            loss = None if value is None or not math.isfinite(value) else value
            told = _told(verdict.staleness)
            self.staleness[told] = self.staleness.get(told, 0) + 1
            self.staleness_sum += verdict.staleness
            self.withheld += 1.0 - verdict.factor
            self.dropped_variables += verdict.dropped_variables
            self.recent_staleness.append(verdict.staleness)
            # Of pushes that make a step together, the first one counts for it.
            makes_step = verdict.applied and verdict.step > self._step
            self._step = verdict.step if makes_step else self._step
            self.recent.add(verdict.applied, loss, now, makes_step=makes_step)
            row.judge(verdict, loss, now)

    def workers(
        self,
        now: float,
        uptime_s: float,
        shards: Mapping[str, str] = {},
        waiting: Collection[str] = (),
    ) -> tuple[WorkerStatus, ...]:
        """Return every worker's row, by name.

        Args:
            now: Seconds.
            uptime_s: Of the server, in seconds.
            shards: {worker: the part of the data that it has leased}.
            waiting: The workers that wait for their turn to pull.
        """
        return tuple(
            row.freeze(name, now, uptime_s, shards.get(name, ""), name in waiting)
            for name, row in sorted(self.rows.items())
        )


def _told(staleness: int) -> int:
    """Round down to three digits: of a million ages nobody could tell all apart."""
    unit = 1
    while staleness >= _EXACT * unit:
        unit *= 10
    return staleness - staleness % unit
