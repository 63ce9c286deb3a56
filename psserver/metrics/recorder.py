"""The thread that shows every sink the server's figures: at first, and each second."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from pswire.status import Status

Sample = Mapping[str, Any]
"""`Status.to_json()`, and "time": when it was taken, in seconds since 1970."""

_EVERY_S = 1.0
_LAST_S = 2.0  # For the last sample, even where no grace is left for it.

_log = logging.getLogger("psserver")


def sample(status: Status, taken: float) -> Sample:
    """Make a sample of a status that was taken then, in seconds since 1970."""
    return {"time": round(taken, 3), **status.to_json()}


class Sink(Protocol):
    """Somewhere for the figures to go.

    A failure is logged and harms nobody: the next sample is shown all the same.
    """

    def write(self, sample: Sample) -> None:
        """Take a sample; those of one server come in the order of time.

        All sinks see the same one: it may be kept, and must not be changed.
        """

    def close(self) -> None:
        """Take no more; the last sample holds all that was counted."""


def close_sinks(sinks: Sequence[Sink]) -> None:
    """Close sinks that nothing will be shown to."""
    for sink in sinks:
        _Guard(sink).attempt(sink.close)


class Recorder:
    """Samples from its construction until `stop`."""

    def __init__(
        self,
        read: Callable[[], Status],
        sinks: Sequence[Sink],
        *,
        first: Status,
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start.

        Args:
            read: Returns the server's figures.
            sinks: Who gets them.
            first: Those that this start of the server began with, shown at once: what
                any later ones have more than these, it has counted itself.
            every_s: The time between two samples, in seconds.
            clock: Tells the time, in seconds since 1970.
        """
        self._read = read
        self._first = sample(first, clock())
        self._reading = _Guard(self)
        self._sinks = [(sink, _Guard(sink)) for sink in sinks]
        self._every_s = every_s
        self._clock = clock
        self._stopped = threading.Event()
        # A daemon: a program that never stops its server can still end.
        self._thread = threading.Thread(
            target=self._run, name="psserver recorder", daemon=True
        )
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Show the last figures, and close every sink.

        Args:
            grace_s: How long to wait for the sinks, in seconds; at least two are
                waited for. Who needs longer is left to it.
        """
        self._stopped.set()
        self._thread.join(max(grace_s, _LAST_S))
        if self._thread.is_alive():
            busy = (sink for sink, guard in self._sinks if guard.is_busy)
            _tell_lost(next(busy, self), "not done in time; the server does not wait")

    def _run(self) -> None:
        try:
            self._show(self._first)
            while not self._stopped.wait(self._every_s):
                self._reading.attempt(self._show_newest)
            self._reading.attempt(self._show_newest)
        finally:
            for sink, guard in self._sinks:
                guard.attempt(sink.close)

    def _show_newest(self) -> None:
        self._show(sample(self._read(), self._clock()))

    def _show(self, taken: Sample) -> None:
        for sink, guard in self._sinks:
            guard.attempt(partial(sink.write, taken))


class _Guard:
    """Does what may fail, and logs that it has failed: once, until it works again.

    Attributes:
        is_busy: Whether it is being done.
    """

    def __init__(self, owner: object) -> None:
        self.is_busy = False
        self._owner = owner
        self._is_failing = False

    def attempt(self, act: Callable[[], None]) -> None:
        self.is_busy = True
        try:
            act()
        except Exception as error:
            if not self._is_failing:
                _tell_lost(self._owner, str(error))
            self._is_failing = True
        else:
            self._is_failing = False
        finally:
            self.is_busy = False


def _tell_lost(owner: object, error: str) -> None:
    name = type(owner).__name__
    _log.warning(
        "metrics are lost: %s: %s",
        *(name, error),
        extra={"event": "metrics_lost", "sink": name, "error": error},
    )
