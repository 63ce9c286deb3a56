"""A server's status as a person reads it."""

from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pswire.counts import Counts
from pswire.status import Limits, Status

_BAR_CELLS = 40
_MAX_BARS = 16
_ENDLESS = 10_000
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(status: Status, file: TextIO) -> None:
    """Print a status: in colour on a terminal, as plain text elsewhere."""
    console = Console(
        file=file,
        highlight=False,
        # Where nobody looks at columns, nothing is folded to fit them.
        width=None if file.isatty() else _ENDLESS,
    )
    console.print(draw(status))


def draw(status: Status) -> RenderableType:
    """Draw the headline, a row for every worker, and the staleness distribution."""
    parts: list[RenderableType] = [_headline(status)]
    if status.workers:
        parts.append(_workers(status))
    if status.staleness:
        parts.append(_histogram(status))
    return Group(*parts)


def _headline(status: Status) -> Text:
    counts = status.counts
    lines = [
        f"step {status.step}, rule {status.rule}, limit {_limit(status.limits)}, "
        f"generation {status.generation}",
        f"pushes: {counts.applied} applied, {counts.dropped} dropped, "
        f"{counts.duplicate} duplicate, {_rejected(counts)}",
        f"drop rate {counts.drop_rate:.1%} of {counts.judged} judged pushes, "
        f"{status.pushes_per_s:.1f} pushes/s in the last 10 s",
    ]
    if not status.initialized:
        lines.insert(1, "no variables yet: the first worker brings them")
    if status.staleness:
        quantiles = (
            f"{name} {status.staleness_quantile(share)}"
            for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
        )
        worst = max(status.staleness)
        lines.append(f"staleness: {', '.join(quantiles)}, most {worst} steps")
    return Text("\n".join(lines))


def _workers(status: Status) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("worker")
    for name in ("applied", "dropped", "drop rate", "drops in a row", "last seen"):
        table.add_column(name, justify="right")
    for worker in status.workers:
        counts = worker.counts
        table.add_row(
            Text(worker.name),
            str(counts.applied),
            str(counts.dropped),
            f"{counts.drop_rate:.1%}",
            str(worker.consecutive_drops),
            f"{worker.last_seen_s:.1f} s ago",
        )
    return table


def _histogram(status: Status) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    limit = status.limits.max_staleness
    bars = _bars(status)
    most = max(pushes for _, _, pushes in bars)
    for first, last, pushes in bars:
        ages = f"{first}" if first == last else f"{first}-{last}"
        dropped = limit is not None and first > limit
        style = "red" if dropped else "green"
        table.add_row(
            f"staleness {ages}",
            Text(_bar(pushes / most), style=style),
            f"{pushes} {'dropped' if dropped else 'applied'}",
        )
    return table


def _bars(status: Status) -> list[tuple[int, int, int]]:
    """Gather the histogram into bars, none of which crosses the limit."""
    worst, limit = max(status.staleness), status.limits.max_staleness
    width = -(-(worst + 1) // _MAX_BARS)
    start = 0 if limit is None or width == 1 else (limit + 1) % width - width
    bars = []
    for first in range(start, worst + 1, width):
        last = first + width - 1
        pushes = sum(n for age, n in status.staleness.items() if first <= age <= last)
        if last >= 0:
            bars.append((max(first, 0), last, pushes))
    return bars


def _bar(share: float) -> str:
    cells, eighths = divmod(round(share * _BAR_CELLS * 8), 8)
    return "█" * cells + (_EIGHTHS[eighths] if eighths else "")


def _limit(limits: Limits) -> str:
    if limits.max_staleness is None:
        return "off"
    return f"{limits.max_staleness} steps"


def _rejected(counts: Counts) -> str:
    total = sum(counts.rejected.values())
    why = ", ".join(f"{number} {name}" for name, number in counts.rejected.items())
    return f"{total} rejected" + (f" ({why})" if why else "")
