"""A line for every worker."""

from collections.abc import Callable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from pswire.counts import WorkerStatus
from pswire.status import Status, WorkerState

_STYLES: Mapping[str, str] = {
    WorkerState.STARVED: "bold red",
    WorkerState.SILENT: "dim",
}
_GAP = 2
_LEAST_NAME = 12
_LONGEST = "longest\nrun"
_FIGURES: dict[str, Callable[[WorkerStatus], str]] = {
    "pushes\n/s": lambda worker: f"{worker.pushes_per_s:.1f}",
    "applied": lambda worker: str(worker.counts.applied),
    "dropped": lambda worker: str(worker.counts.dropped),
    "drop\nrate": lambda worker: f"{worker.counts.drop_rate:.1%}",
    "in a\nrow": lambda worker: str(worker.consecutive_drops),
    _LONGEST: lambda worker: str(worker.longest_drops),
    "last\nseen": lambda worker: span(worker.last_seen_s),
}
_LEFT_OUT_FIRST = (_LONGEST, "applied", "pushes\n/s")


def span(seconds: float) -> str:
    """Write how long something took, for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h"


def draw(
    status: Status, workers: Sequence[WorkerStatus], *, width: int | None = None
) -> Table:
    """Draw some of a status's workers.

    Args:
        status: What says which state they are in.
        workers: One or more, in the order in which they are drawn.
        width: The room that there is, in letters; figures are left out for it, then
            the beginnings of names, which differ less than their ends. None: nothing
            is left out, and what does not fit is folded.
    """
    names = [worker.name for worker in workers]
    columns = {
        "state": [_state(status, worker) for worker in workers],
        **{
            head: [cell(worker) for worker in workers]
            for head, cell in _FIGURES.items()
        },
    }
    if width is not None:
        room = _make_room(columns, width, least=min(_LEAST_NAME, _widest(names)))
        names = [_cut(name, room) for name in names]
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False
    )
    table.add_column("worker", vertical="bottom", overflow="fold")
    for head in columns:
        justify: JustifyMethod = "right" if head in _FIGURES else "left"
        table.add_column(head, justify=justify, vertical="bottom", overflow="fold")
    for name, *cells in zip(names, *columns.values(), strict=True):
        table.add_row(Text(name), *cells, style=_STYLES.get(cells[0]))
    return table


def _state(status: Status, worker: WorkerStatus) -> str:
    state = status.state(worker)
    is_waiting = worker.waiting and state is WorkerState.ACTIVE
    return "waiting" if is_waiting else str(state)


def _make_room(columns: dict[str, list[str]], width: int, least: int) -> int:
    """Leave columns out until the names have room; return how much that is."""
    for head in _LEFT_OUT_FIRST:
        if _room(columns, width) >= least:
            break
        del columns[head]
    return max(_room(columns, width), least)


def _room(columns: dict[str, list[str]], width: int) -> int:
    return width - sum(
        _GAP + _widest([*head.split("\n"), *cells]) for head, cells in columns.items()
    )


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts))


def _cut(name: str, cells: int) -> str:
    if cell_len(name) <= cells:
        return name
    while name and cell_len(name) >= cells:
        name = name[1:]
    return f"…{name}"
