"""When the loss first reached a level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from psserver.report.starts import Start, told

_ROUND = (1, 2, 5)
_MOST = 8
_TINY = 1e-300  # Nothing is told between losses that are closer.
_WIDE = 4  # Times: losses farther apart than this are parted by ratio.


@dataclass(frozen=True, slots=True)
class Reached:
    """Where the recent loss came down to a level for the first time.

    Attributes:
        loss: The level.
        start: The number of the server's start, from 0; None: it was never reached.
        uptime_s: Since that start, in seconds.
        step: The step then.
        judged: The pushes judged until then.
        at_first_sight: Whether the file begins later, so that it may have been before.
    """

    loss: float
    start: int | None = None
    uptime_s: float | None = None
    step: int | None = None
    judged: int | None = None
    at_first_sight: bool = False


def reached(starts: Sequence[Start], loss: float) -> Reached:
    """Say when the recent loss was first at `loss` or below."""
    for number, start in enumerate(starts):
        for index, recent in enumerate(start.losses):
            if recent is not None and recent <= loss:
                return Reached(
                    loss=loss,
                    start=number,
                    uptime_s=start.uptimes[index],
                    step=start.steps[index],
                    judged=start.judged[index],
                    at_first_sight=index == 0 and not start.is_whole,
                )
    return Reached(loss)


def levels(starts: Sequence[Start]) -> list[float]:
    """Return round losses from the first one told down to the best, descending."""
    losses = told(starts)
    if not losses or losses[0] - min(losses) < _TINY:
        return []
    first, best = losses[0], min(losses)
    by_ratio = best > 0 and first / best > _WIDE
    found = _by_ratio(first, best) if by_ratio else _by_difference(first, best)
    # Of too many those that are hardest to reach are told for sure.
    return found[::-1][:: -(-len(found) // _MOST) or 1][::-1]


def _by_ratio(first: float, best: float) -> list[float]:
    powers = range(math.floor(math.log10(best)), math.ceil(math.log10(first)) + 1)
    found = [
        (digit, level)
        for power in reversed(powers)
        for digit in reversed(_ROUND)
        if best <= (level := float(f"{digit}e{power}")) < first
    ]
    return [level for digit, level in found if digit == 1 or len(found) <= _MOST]


def _by_difference(first: float, best: float) -> list[float]:
    power = math.floor(math.log10((first - best) / _MOST))
    sizes = [float(f"{digit}e{power}") for digit in (*_ROUND, 10)]
    size = next(size for size in sizes if (first - best) / size <= _MOST)
    multiples = range(math.floor(first / size), math.ceil(best / size) - 1, -1)
    found = [float(f"{multiple * size:.12g}") for multiple in multiples]
    return [level for level in found if best <= level < first]
