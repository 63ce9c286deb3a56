"""Tables for people."""

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from psserver.logs import printable


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """Draw rows; numbers stand at the right."""
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*map(text, row))
    return drawn


def text(value: Any) -> Text:
    """Write a value, so that it cannot do anything to a terminal; None is empty."""
    written = Text(printable("" if value is None else str(value)))
    if isinstance(value, int):
        written.justify = "right"
    return written
