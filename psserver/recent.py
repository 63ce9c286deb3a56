"""What became of the pushes of the last ten seconds."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

_WINDOW_S = 10
_ENOUGH_LOSSES = 20


@dataclass(frozen=True, slots=True)
class Rates:
    """The last ten seconds in figures.

    Attributes:
        pushes_per_s: Judged pushes, a second.
        steps_per_s: Steps that they made, a second.
        drop_rate: Dropped ones among the judged, 0 to 1; None: none was judged.
        loss: The mean of the newest losses that they told, twenty or more if there
            are so many; None: none told one.
    """

    pushes_per_s: float
    steps_per_s: float
    drop_rate: float | None
    loss: float | None


@dataclass(slots=True)
class _Second:
    second: int
    judged: int = 0
    applied: int = 0
    steps: int = 0
    losses: int = 0
    loss: float = 0.0


class Recent:
    """Judged pushes by the second; whoever owns it guards it.

    Times are in seconds, of a clock that never goes back.
    """

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=_WINDOW_S)

    def copy(self) -> "Recent":
        """Return what there is now."""
        copy = Recent()
        copy._seconds = self._seconds.copy()
        if copy._seconds:  # The others do not change any more.
            copy._seconds.append(replace(copy._seconds.pop()))
        return copy

    def add(
        self, applied: bool, loss: float | None, now: float, *, makes_step: bool
    ) -> None:
        """Count a push; some make a step together with others that are counted."""
        second = int(now)
        if not self._seconds or self._seconds[-1].second != second:
            self._seconds.append(_Second(second))
        row = self._seconds[-1]
        row.judged += 1
        row.applied += applied
        row.steps += makes_step
        if loss is not None:
            row.losses += 1
            row.loss += loss

    def rates(self, now: float, uptime_s: float) -> Rates:
        """Return the figures of a window that ends in the second that it is.

        Args:
            now: Seconds.
            uptime_s: How long there has been anything to count, in seconds.
        """
        since = int(now) - _WINDOW_S + 1
        rows = [row for row in self._seconds if row.second >= since]
        span_s = max(min(now - since, uptime_s), 1.0)
        judged = sum(row.judged for row in rows)
        applied = sum(row.applied for row in rows)
        return Rates(
            pushes_per_s=judged / span_s,
            steps_per_s=sum(row.steps for row in rows) / span_s,
            drop_rate=(judged - applied) / judged if judged else None,
            loss=_newest_loss(rows),
        )


def _newest_loss(rows: Sequence[_Second]) -> float | None:
    """Return a mean of as few seconds as will do: one that falls fast is not late."""
    losses, loss = 0, 0.0
    for row in reversed(rows):
        losses += row.losses
        loss += row.loss
        if losses >= _ENOUGH_LOSSES:
            break
    mean = loss / max(losses, 1)
    return mean if losses and math.isfinite(mean) else None  # Sums overflow.
