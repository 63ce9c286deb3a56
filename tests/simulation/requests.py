"""What workers ask of a server."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from pswire.body import Arrays
from pswire.errors import NonFiniteError, ParameterServerError
from pswire.layout import Layout
from pswire.values import PushHeader

NAMES = ("A", "C")
"""Of the variables."""


@dataclass(frozen=True, slots=True)
class Join:
    """To enter a session."""

    worker: str
    session: str
    rejoin: bool


@dataclass(frozen=True, slots=True)
class Initialize:
    """To bring the first variables, which tell who brought them."""

    session: str


@dataclass(frozen=True, slots=True)
class Pull:
    """To get the newest snapshot."""

    session: str


@dataclass(frozen=True, slots=True)
class Push:
    """To apply gradients that tell pushes apart.

    Attributes:
        header: Of the push.
        number: Of all pushes: it adds 1 to element `number` of `A`, and gives its own
            weight to `C`.
        flaw: What is wrong with the gradients; None: nothing.
    """

    header: PushHeader
    number: int
    flaw: type[ParameterServerError] | None = None

    @property
    def session(self) -> str:
        return self.header.session

    @property
    def name(self) -> tuple[str, int]:
        """What it has in common with its retries."""
        return self.header.session, self.header.seq

    def weight(self) -> int:
        return self.number % 7 + 1

    def gradients(self, width: int) -> Arrays:
        """Make the gradients: `A` has as many elements as said."""
        marks = np.zeros(width, np.float32)
        marks[self.number % width] = np.nan if self.flaw is NonFiniteError else -1
        return {"A": marks, "C": np.full(1, self.weight(), np.float32)}


Request = Join | Initialize | Pull | Push


def variables(width: int, session: str) -> Arrays:
    """Make the first variables that a session brings."""
    mark = np.full(1, crc32(session.encode()) % 1000, np.float32)
    return {"A": np.zeros(width, np.float32), "C": mark}


def layout(width: int) -> Layout:
    """Return their layout, and that of the gradients."""
    return Layout.of(variables(width, ""))
