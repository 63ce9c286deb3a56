"""What a worker does with a batch whose push was dropped."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # The command reads this module, and starts at once.
    from pswire.values import Verdict

OnDrop = Literal["skip", "retry", "requeue"] | Callable[["Verdict"], bool]
"""Whether to let go of a dropped batch, to compute it again at once, or later; a
function is told each drop's verdict, and returns True for at once."""

UNLEARNED = "batches never learned from"
"""How a worker's last line ends, behind the number: who launched it reads that."""
NO_PUSH = "no push"
"""The last line of a worker that has made none."""

_KNOWN = ("skip", "retry", "requeue")
_MANY = 20

_log = logging.getLogger("psworker")


@dataclass(frozen=True, slots=True)
class Drops:
    """What becomes of dropped batches.

    Attributes:
        on_drop: See `OnDrop`.
        max_retries: How often each of them may be computed again.

    Raises:
        ValueError: `on_drop` is none of those, or the number negative.
    """

    on_drop: OnDrop
    max_retries: int

    def __post_init__(self) -> None:
        if not callable(self.on_drop) and self.on_drop not in _KNOWN:
            raise ValueError(
                'on_drop: expected "skip", "retry", "requeue" or a function, '
                f"got {self.on_drop!r}"
            )
        if self.max_retries < 0:
            raise ValueError(f"max_retries: expected 0 or more, got {self.max_retries}")

    def retries(self, verdict: "Verdict", tries: int) -> bool:
        """Say whether to compute a batch again at once.

        Args:
            verdict: Of its push, which was dropped.
            tries: How many pushes of it had been dropped before.
        """
        wanted = self.on_drop(verdict) if callable(self.on_drop) else None
        return (wanted or self.on_drop == "retry") and tries < self.max_retries

    def requeues(self, tries: int) -> bool:
        """Say whether to compute a batch again later; see `retries`."""
        return self.on_drop == "requeue" and tries < self.max_retries

    def recovers(self, tries: int) -> bool:
        """Say whether to compute a batch again whose push was lost with its history.

        A function is not asked: there is no verdict.
        """
        return self.on_drop in ("retry", "requeue") and tries < self.max_retries


def require_no_retry(on_drop: OnDrop, *, prefetch: bool, background_push: bool) -> None:
    """Check that no batch is to be retried at once where calls overlap with computing.

    The variables for the next gradient are there, or on their way, before a drop is
    known, so a retry would be as stale as what it repeats.

    Raises:
        ValueError: One is.
    """
    if (callable(on_drop) or on_drop == "retry") and (prefetch or background_push):
        setting = "prefetch" if prefetch else "background_push"
        got = "a function" if callable(on_drop) else f'"{on_drop}"'
        raise ValueError(
            f'on_drop: expected "skip" or "requeue" beside {setting}, got {got}'
        )


class Advice:
    """What a worker is told once of many drops in a row; whoever owns it guards it."""

    def __init__(self) -> None:
        """Start with nothing told."""
        self._is_told = False

    def heed(self, verdict: "Verdict") -> None:
        """Look at one verdict more; where it is the last of many drops, say so."""
        if verdict.consecutive_drops < _MANY or self._is_told:
            return
        self._is_told = True
        _log.warning(
            "the last %d pushes were all dropped, the last one %d steps old: nothing "
            "is learned from these batches; raise the server's --max-staleness or what "
            "its --staleness-policy allows, as psserver set does, or make the batches "
            "smaller; if all workers have the same data, it does no harm",
            verdict.consecutive_drops,
            verdict.staleness,
        )
