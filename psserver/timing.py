"""Where the time of one push goes."""

from collections.abc import Callable

from pswire.values import PushHeader


class Timing:
    """One push's stopwatch.

    Attributes:
        judged_at: When the push was judged and, if so, applied, in the clock's seconds.
        waited_s: How long was waited for the lock, in seconds.
        apply_s: How long the rule took, in seconds; None: it did not run.
        held_s: How long the worker says that it held the snapshot, in seconds.
    """

    __slots__ = (
        *("_asked_at", "_clock", "_entered_at", "_served_at", "_since"),
        *("apply_s", "held_s", "judged_at", "waited_s"),
    )

    def __init__(
        self, header: PushHeader, clock: Callable[[], float], since: float
    ) -> None:
        """Begin.

        Args:
            header: Of the push.
            clock: Tells the seconds; it never goes back.
            since: When the server started, in the clock's seconds.
        """
        self._clock = clock
        self._since = since
        self._served_at = header.served_at
        self.held_s = header.held_s
        self.waited_s = 0.0
        self.apply_s: float | None = None

    def ask(self) -> None:
        """Begin to wait for the lock."""
        self._asked_at = self._clock()

    def enter(self) -> None:
        """Go on, with the lock."""
        self._entered_at = self.judged_at = self._clock()
        self.waited_s += self._entered_at - self._asked_at

    def apply(self, rule: Callable[[], None]) -> None:
        """Time the rule."""
        began = self._clock()
        rule()
        self.judged_at = self._clock()
        self.apply_s = self.judged_at - began

    @property
    def wire_s(self) -> float | None:
        """How long snapshot and push were on their way, in seconds; None: unknown.

        What the worker says must fit what this side has seen.
        """
        if self._served_at is None:
            return None
        seconds = self._entered_at - self.waited_s - self._served_at - self.held_s
        is_possible = (
            self._served_at >= self._since and self.held_s >= 0 and seconds >= 0
        )
        return seconds if is_possible else None
