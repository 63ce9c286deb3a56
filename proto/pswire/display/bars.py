"""How stale the judged pushes were, as bars."""

from rich.table import Table
from rich.text import Text

from pswire.status import Status

_EIGHTHS = " ▏▎▍▌▋▊▉"


def draw(status: Status, *, most_bars: int = 16, cells: int = 40) -> Table:
    """Draw a bar for each range of staleness, none of which crosses the limit.

    Where the limit has changed, a bar may hold applied and dropped pushes.

    Args:
        status: What to draw; there is a push that has been judged.
        most_bars: How many bars to draw, at most; where the limit has to part two of
            them, one more.
        cells: How long the longest bar is, in letters.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    limit = status.parting
    is_mixed = limit is None and status.counts.dropped > 0
    bars = _bars(status, most_bars)
    most = max(pushes for _, _, pushes in bars)
    for first, last, pushes in bars:
        ages = f"{first}" if first == last else f"{first}-{last}"
        dropped = limit is not None and first > limit
        style = "red" if dropped else "yellow" if is_mixed else "green"
        outcome = "dropped" if dropped else "judged" if is_mixed else "applied"
        table.add_row(
            f"staleness {ages}",
            Text(_bar(pushes / most, cells), style=style),
            f"{pushes} {outcome}",
        )
    return table


def _bars(status: Status, most: int) -> list[tuple[int, int, int]]:
    """Gather the pushes: the first and the last staleness of each bar, and a number."""
    worst, limit = max(status.staleness), status.parting
    width = -(-(worst + 1) // most)
    start = 0 if limit is None or width == 1 else (limit + 1) % width - width
    bars = []
    for first in range(start, worst + 1, width):
        last = first + width - 1
        pushes = sum(n for age, n in status.staleness.items() if first <= age <= last)
        if last >= 0:
            bars.append((max(first, 0), last, pushes))
    return bars


def _bar(share: float, cells: int) -> str:
    whole, eighths = divmod(round(share * cells * 8), 8)
    return "█" * whole + (_EIGHTHS[eighths] if eighths else "")
