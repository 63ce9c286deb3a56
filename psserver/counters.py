"""The counting of pushes: in all, and for every worker."""

from collections import Counter, deque
from dataclasses import dataclass, field

from pswire.errors import ParameterServerError, reason
from pswire.status import Counts, WorkerStatus
from pswire.values import Verdict

_WINDOW_S = 10


@dataclass(slots=True)
class Tally:
    """What became of some pushes, while they are being counted."""

    applied: int = 0
    dropped: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Verdict | ParameterServerError) -> None:
        if isinstance(outcome, ParameterServerError):
            self.rejected[reason(outcome)] += 1
        elif outcome.duplicate:
            self.duplicate += 1
        elif outcome.applied:
            self.applied += 1
        else:
            self.dropped += 1

    def freeze(self) -> Counts:
        return Counts(
            applied=self.applied,
            dropped=self.dropped,
            duplicate=self.duplicate,
            rejected=dict(sorted(self.rejected.items())),
        )


@dataclass(slots=True)
class WorkerRow:
    """One worker's tally, its run of drops, and when it last called."""

    last_seen: float
    tally: Tally = field(default_factory=Tally)
    consecutive_drops: int = 0

    def add(self, outcome: Verdict | ParameterServerError) -> None:
        self.tally.add(outcome)
        if isinstance(outcome, Verdict) and not outcome.duplicate:
            run = 0 if outcome.applied else self.consecutive_drops + 1
            self.consecutive_drops = run


class Counters:
    """All that the server counts; whoever owns it guards it.

    Every push is counted once, by what became of it, so the sums reconcile: received
    is applied + dropped + duplicate + rejected, and the workers' rows add up to the
    totals less the rejected pushes of sessions that never joined.
    """

    def __init__(self) -> None:
        self.total = Tally()
        self.staleness: Counter[int] = Counter()
        self._workers: dict[str, WorkerRow] = {}
        self._judged_at: deque[tuple[int, int]] = deque()

    def join(self, worker: str, now: float) -> None:
        """Start a worker's row, or find it again."""
        self._workers.setdefault(worker, WorkerRow(last_seen=now))
        self.see(worker, now)

    def see(self, worker: str, now: float) -> None:
        """Note that a joined worker has called."""
        row = self._workers.get(worker)
        if row:  # None while another thread is just about to make it.
            row.last_seen = now

    def add(
        self, worker: str | None, outcome: Verdict | ParameterServerError, now: float
    ) -> None:
        """Count a push by what became of it.

        Args:
            worker: Who pushed; None: somebody who never joined.
            outcome: Its verdict, or the error that rejected it.
            now: Seconds, of a clock that never goes back.
        """
        self.total.add(outcome)
        if worker is not None:
            self._workers[worker].add(outcome)
        if isinstance(outcome, Verdict) and not outcome.duplicate:
            self.staleness[outcome.staleness] += 1
            self._note_rate(now)

    def pushes_per_s(self, now: float, uptime_s: float) -> float:
        """Return the judged pushes of the last ten seconds, a second."""
        since = int(now) - _WINDOW_S + 1  # The window ends in the second that it is.
        judged = sum(n for second, n in self._judged_at if second >= since)
        return judged / max(min(now - since, uptime_s), 1.0)

    def workers(self, now: float) -> tuple[WorkerStatus, ...]:
        """Return every worker's row, by name."""
        return tuple(
            WorkerStatus(
                name=name,
                counts=row.tally.freeze(),
                consecutive_drops=row.consecutive_drops,
                last_seen_s=max(0.0, now - row.last_seen),
            )
            for name, row in sorted(self._workers.items())
        )

    def _note_rate(self, now: float) -> None:
        second = int(now)
        if self._judged_at and self._judged_at[-1][0] == second:
            second, judged = self._judged_at.pop()
        else:
            judged = 0
        self._judged_at.append((second, judged + 1))
        while self._judged_at[0][0] <= now - _WINDOW_S:
            self._judged_at.popleft()
