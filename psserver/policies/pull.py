"""A pull that asks for its turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pull:
    """What a policy that paces knows of a pull.

    A session is live if it is its worker's newest and has called in the last minute.

    Attributes:
        session: Who pulls.
        step: What it would read, in steps.
        limit: The hard limit, in steps; None: there is none.
        clocks: {session: its judged pushes} of the live ones, who pulls included.
        in_flight: {session: the step that it read, in steps} of the other live ones
            that were granted a pull and have had no push judged since.
        ahead: The other sessions that wait, and have waited for longer; the first of
            them first.
    """

    session: str
    step: int
    limit: int | None
    clocks: Mapping[str, int]
    in_flight: Mapping[str, int]
    ahead: Sequence[str] = ()
