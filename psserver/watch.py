"""A live view of a server, as large as the terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from psserver import admin
from pswire.counts import WorkerStatus
from pswire.credentials import ANONYMOUS, Credentials
from pswire.display import bars as staleness_bars
from pswire.display import summary, workertable
from pswire.display.workertable import span
from pswire.errors import ParameterServerError
from pswire.status import Status, WorkerState

_REDRAWN_PER_S = 2  # A new size shows even while the server does not answer.
_BESIDE_BAR = 34  # In letters: the staleness, and the pushes.
_MOST_CELLS = 40
_LEAST_BARS, _MOST_BARS = 2, 12
_TABLE_HEAD = 4  # Lines: a blank one, two of headings, and a rule.
_LEAST_ROWS = 3


def watch(address: str, file: TextIO, credentials: Credentials = ANONYMOUS) -> None:
    """Show a server until Ctrl-C; the last view is left on the terminal.

    Raises:
        ParameterServerError: The server has not answered the first time.
    """
    found = admin.follow(address, credentials)
    first = next(found)
    assert isinstance(first, Status)  # Had it been an error, it would have been raised.
    view = View(address, first, first, time.monotonic())
    console = Console(file=file, highlight=False)
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, refresh_per_second=_REDRAWN_PER_S) as live,
    ):
        live.update(view, refresh=True)
        for each in found:
            view = view.after(each)
            live.update(view, refresh=True)
    console.print(view)


@dataclass(frozen=True)
class View:
    """What is known of a server, drawn to fit.

    Attributes:
        address: The server's.
        first: Its first figures.
        status: Its last ones.
        answered: When they came, in the clock's seconds.
        failure: Why there are no newer ones; empty: it answers.
        clock: Tells the seconds.
    """

    address: str
    first: Status
    status: Status
    answered: float
    failure: str = ""
    clock: Callable[[], float] = time.monotonic

    def after(self, found: Status | ParameterServerError) -> "View":
        """Return the next view: of newer figures, or of a server that is away."""
        if isinstance(found, ParameterServerError):
            return replace(self, failure=str(found))
        return replace(self, status=found, answered=self.clock(), failure="")

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        status = self.status
        head = Group(*self._news(), _figures(status))
        yield head
        lines = console.render_lines(head, options, pad=False)
        # The last line stays free: in the end a prompt follows.
        room = console.height - 1 - len(lines)
        yield from _tables(status, options.max_width, room)

    def _news(self) -> Iterator[RenderableType]:
        status = self.status
        uptime = span(status.uptime_s)
        yield Text.assemble((self.address, "bold"), f", up {uptime}")
        yield Text(
            summary.settings(status), style="dim", no_wrap=True, overflow="ellipsis"
        )
        if status.incarnation != self.first.incarnation:
            is_cut = status.generation != self.first.generation
            what = "what no checkpoint had is lost" if is_cut else "no step is lost"
            yield Text(f"the server restarted {uptime} ago: {what}", style="yellow")
        if self.failure:
            away = span(self.clock() - self.answered)
            yield Text(
                f"no answer for {away}: all figures are as of then", "bold yellow"
            )
            yield Text(self.failure, style="dim", no_wrap=True, overflow="ellipsis")
        if not status.initialized:
            yield Text("no variables yet: the first worker brings them")
        yield ""


def _figures(status: Status) -> Table:
    now = status.recent_drop_rate
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    step = (str(status.step), "bold")
    grid.add_row("step", Text.assemble(step, f", {summary.rates(status)}"))
    grid.add_row(
        "drop rate",
        Text.assemble(
            ("no push" if now is None else f"{now:.1%}", "bold"),
            f" in the last 10 s, {status.counts.drop_rate:.1%} overall",
        ),
    )
    grid.add_row("pushes", summary.outcomes(status.counts))
    if status.staleness:
        grid.add_row("staleness", summary.quantiles(status))
    if status.durability.mode != "none":
        grid.add_row("kept", summary.kept(status))
    return grid


def _tables(status: Status, width: int, room: int) -> Iterator[RenderableType]:
    """Draw the workers and the bars; where not both fit, the workers alone."""
    wanted = len(status.workers) + _TABLE_HEAD if status.workers else 0
    bars = None
    if status.staleness and room > _LEAST_BARS + _TABLE_HEAD + _LEAST_ROWS:
        most = max(_LEAST_BARS, min(_MOST_BARS, room - wanted - 2))
        cells = max(1, min(_MOST_CELLS, width - _BESIDE_BAR))
        bars = staleness_bars.draw(status, most_bars=most, cells=cells)
        room -= bars.row_count + 1
    if status.workers:
        yield from _workers(status, width, room - _TABLE_HEAD)
    if bars:
        yield from ("", bars)


def _workers(status: Status, width: int, rows: int) -> Iterator[RenderableType]:
    shown, left = status.workers, 0
    if len(shown) > rows:
        shown = tuple(sorted(shown, key=partial(_urgency, status))[: max(rows - 1, 1)])
        left = len(status.workers) - len(shown)
    yield from ("", workertable.draw(status, shown, width=width))
    if left:
        yield Text(f"{left} more workers", style="dim")


def _urgency(status: Status, worker: WorkerStatus) -> tuple[bool, float, str]:
    is_starved = status.state(worker) is WorkerState.STARVED
    return not is_starved, -worker.counts.drop_rate, worker.name
