"""A run's samples, gathered by the server's starts: what the report is made from."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from psserver.report.samples import Moment
from pswire.status import WorkerState

_WINDOW_S = 10.0
_SOON_S = 60.0


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the curves.

    Attributes:
        uptime_s: Since the server's start, in seconds.
        step: The step then.
        drop_rate: Of the pushes since the point before, and in the last ten seconds at
            least, 0 to 1; None: none was judged.
        steps_per_s: Over the same time; None: what was before is unknown.
        loss: The mean of the losses since the point before; None: none was told.
        staleness: The mean staleness of the pushes of the drop rate, in steps.
    """

    uptime_s: float
    step: int
    drop_rate: float | None
    steps_per_s: float | None
    loss: float | None
    staleness: float | None


@dataclass(slots=True)
class Start:
    """One start of the server, whose counters began from nothing.

    Attributes:
        first: Its first sample.
        last: Its last sample.
        uptimes: When the samples were taken, in seconds since the start. This column
            and those below begin with the start itself.
        steps: The step then.
        judged: The pushes judged until then.
        dropped: Those among them that were dropped.
        ages: The sum of their staleness, in steps.
        losses: The recent loss then, if one was told.
        starved_s: How long each worker was starved, in seconds.
    """

    first: Moment
    last: Moment
    uptimes: list[float] = field(default_factory=lambda: [0.0])
    steps: list[int] = field(default_factory=lambda: [0])
    judged: list[int] = field(default_factory=lambda: [0])
    dropped: list[int] = field(default_factory=lambda: [0])
    ages: list[int] = field(default_factory=lambda: [0])
    losses: list[float | None] = field(default_factory=lambda: [None])
    starved_s: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )

    @property
    def samples(self) -> int:
        """How many samples there are of it."""
        return len(self.uptimes) - 1

    @property
    def is_whole(self) -> bool:
        """Whether its samples begin with the start, not somewhere in mid-run."""
        return self.first.uptime_s <= _SOON_S

    def add(self, moment: Moment) -> None:
        """Take the next sample."""
        passed_s = moment.uptime_s - self.last.uptime_s
        for worker in self.last.workers:
            if worker.state == WorkerState.STARVED:
                self.starved_s[worker.name] += passed_s
        self.last = moment
        self.uptimes.append(moment.uptime_s)
        self.steps.append(moment.step)
        self.judged.append(moment.counts.judged)
        self.dropped.append(moment.counts.dropped)
        self.ages.append(round((moment.mean_staleness or 0.0) * moment.counts.judged))
        self.losses.append(moment.loss)

    def points(self, every: int) -> list[Point]:
        """Return a point for every so many samples, and one for the last."""
        picked = [*range(every, self.samples, every), self.samples]
        return list(map(self._point, [0, *picked], picked))

    def _point(self, before: int, index: int) -> Point:
        uptime_s = self.uptimes[index]
        window = bisect_right(self.uptimes, max(uptime_s - _WINDOW_S, 0.0)) - 1
        since = min(before, window)
        known = since > 0 or self.is_whole
        dropped, judged, ages, steps = (
            column[index] - column[since]
            for column in (self.dropped, self.judged, self.ages, self.steps)
        )
        span_s = max(uptime_s - self.uptimes[since], 1.0)
        told = [x for x in self.losses[before + 1 : index + 1] if x is not None]
        return Point(
            uptime_s=uptime_s,
            step=self.steps[index],
            drop_rate=dropped / judged if known and judged else None,
            steps_per_s=steps / span_s if known else None,
            loss=sum(told) / len(told) if told else None,
            staleness=ages / judged if known and judged else None,
        )


def gather(moments: Iterable[Moment]) -> list[Start]:
    """Part the samples by the server's starts, in their order."""
    starts: dict[str, Start] = {}
    for moment in moments:
        start = starts.setdefault(moment.incarnation, Start(moment, moment))
        start.add(moment)
    return list(starts.values())


def told(starts: Sequence[Start]) -> list[float]:
    """Return every recent loss that was told, in their order."""
    return [loss for start in starts for loss in start.losses if loss is not None]
