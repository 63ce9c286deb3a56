"""A pull that waits for its turn, which the server's policy gives it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_FIRST_S = 10.0
_NEXT_S = 60.0

_log = logging.getLogger("psworker")


@dataclass(frozen=True, slots=True)
class Wait:
    """The server's word that it is not this worker's turn yet.

    Attributes:
        wait_s: When to ask again, in seconds.
        waits_for: The worker that is waited for; empty: nobody in particular.
    """

    wait_s: float
    waits_for: str


@dataclass(slots=True)
class Queueing:
    """The time that one pull spends waiting; it begins with this.

    Attributes:
        worker: Whose pull it is.
        clock: Tells the seconds; it never goes back.
    """

    worker: str
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _next_s: float = field(default=_FIRST_S, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def note(self, wait: Wait) -> None:
        """Warn of another wait, if there has been none for long."""
        waited_s = self.clock() - self._began
        if waited_s < self._next_s:
            return
        self._next_s = waited_s + _NEXT_S
        _log.warning(
            "worker %s has waited %.0f s for its turn to pull, now for %s",
            *(self.worker, waited_s, wait.waits_for or "no worker in particular"),
        )
