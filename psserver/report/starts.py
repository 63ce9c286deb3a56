"""A run's samples, gathered by the server's starts: what the report is made from."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from psserver.metrics.since import since
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
        steps_per_s: Over the same time; None: it is the first sample's.
        loss: The mean of the losses since the point before; None: none was told.
        staleness: The mean staleness of the pushes of the drop rate, in steps.
    """

    uptime_s: float
    step: int
    drop_rate: float | None
    steps_per_s: float | None
    loss: float | None
    staleness: float | None


@dataclass(frozen=True, slots=True)
class Terms:
    """By what pushes are judged from some time on.

    Attributes:
        uptime_s: Since when, in seconds since the server's start.
        step: Likewise, in steps.
        limit: The hard limit, in steps; None: off.
        policy: What becomes of the pushes that it admits.
    """

    uptime_s: float
    step: int
    limit: int | None
    policy: str

    @classmethod
    def of(cls, moment: Moment) -> Self:
        return cls(moment.uptime_s, moment.step, moment.limit, moment.policy)

    def are_like(self, other: "Terms") -> bool:
        """Say whether pushes are judged alike by both."""
        return (self.limit, self.policy) == (other.limit, other.policy)


@dataclass(slots=True)
class Start:
    """One start of the server, which may have gone on from where another had ended.

    Attributes:
        first: Its first sample, which the server takes before anybody calls.
        last: Its last sample.
        is_whole: Whether that is so, and `first` has none of its counts.
        uptimes: When the samples were taken, in seconds since the start.
        steps: The step then.
        judged: The pushes judged until then.
        dropped: Those among them that were dropped.
        ages: The sum of their staleness, in steps.
        losses: The recent loss then, if one was told.
        terms: By what pushes were judged, where that was something else than before.
        starved_s: How long each worker was starved, in seconds.
    """

    first: Moment
    last: Moment
    is_whole: bool
    uptimes: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    starved_s: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )

    @property
    def samples(self) -> int:
        """How many samples there are of it."""
        return len(self.uptimes)

    @property
    def first_step(self) -> int:
        """The step that its own steps count from."""
        return self.first.step if self.is_whole else 0

    @property
    def own_steps(self) -> int:
        """How many steps it has made."""
        return self.last.step - self.first_step

    @property
    def counted(self) -> Moment:
        """What it has counted itself, as of its last sample."""
        return since(self.last, self.first) if self.is_whole else self.last

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
        self.ages.append(moment.staleness_sum)
        self.losses.append(moment.loss)
        terms = Terms.of(moment)
        if not (self.terms and terms.are_like(self.terms[-1])):
            self.terms.append(terms)

    def points(self, every: int) -> list[Point]:
        """Return a point for every so many samples, and one for the last."""
        last = self.samples - 1
        picked = [*range(0, last, every), last]
        return list(map(self._point, [-1, *picked], picked))

    def _point(self, before: int, index: int) -> Point:
        uptime_s = self.uptimes[index]
        window = bisect_right(self.uptimes, uptime_s - _WINDOW_S) - 1
        begin = max(min(before, window), 0)
        dropped, judged, ages, steps = (
            column[index] - column[begin]
            for column in (self.dropped, self.judged, self.ages, self.steps)
        )
        span_s = max(uptime_s - self.uptimes[begin], 1.0)
        told = [x for x in self.losses[before + 1 : index + 1] if x is not None]
        return Point(
            uptime_s=uptime_s,
            step=self.steps[index],
            drop_rate=dropped / judged if judged else None,
            steps_per_s=steps / span_s if index else None,
            loss=sum(told) / len(told) if told else None,
            staleness=ages / judged if judged else None,
        )


def gather(moments: Iterable[Moment]) -> list[Start]:
    """Part the samples by the server's starts, in their order."""
    starts: dict[str, Start] = {}
    for moment in moments:
        # Of the first start the full files with the first samples may be removed.
        is_whole = bool(starts) or moment.uptime_s <= _SOON_S
        start = starts.setdefault(moment.incarnation, Start(moment, moment, is_whole))
        start.add(moment)
    return list(starts.values())


def told(starts: Sequence[Start]) -> list[float]:
    """Return every recent loss that was told, in their order."""
    return [loss for start in starts for loss in start.losses if loss is not None]
