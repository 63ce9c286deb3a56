"""The thread that shows every sink the server's figures, once a second."""

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

_log = logging.getLogger("psserver")


def sample(status: Status, taken: float) -> Sample:
    """Make a sample of a status that was taken then, in seconds since 1970."""
    return {"time": round(taken, 3), **status.to_json()}


class Sink(Protocol):
    """Somewhere for the figures to go.

    A failure is logged and harms nobody: the next sample is shown all the same.
    """

    def write(self, sample: Sample) -> None:
        """Take a sample; those of one server come in the order of time."""

    def close(self) -> None:
        """Take no more; the last sample holds all that was counted."""


class Recorder:
    """Samples from its construction until `stop`."""

    def __init__(
        self,
        read: Callable[[], Status],
        sinks: Sequence[Sink],
        *,
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start.

        Args:
            read: Returns the server's figures.
            sinks: Who gets them.
            every_s: The time between two samples, in seconds.
            clock: Tells the time, in seconds since 1970.
        """
        self._read = read
        self._sinks = sinks
        self._every_s = every_s
        self._clock = clock
        self._failing: set[Sink] = set()
        self._stopped = threading.Event()
        # A daemon: a program that never stops its server can still end.
        self._thread = threading.Thread(
            target=self._run, name="psserver recorder", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Show the last figures, and close every sink."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._show()
        self._show()
        for sink in self._sinks:
            self._try(sink, sink.close)

    def _show(self) -> None:
        taken = sample(self._read(), self._clock())
        for sink in self._sinks:
            self._try(sink, partial(sink.write, taken))

    def _try(self, sink: Sink, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            if sink not in self._failing:  # Once is enough, until it works again.
                name = type(sink).__name__
                _log.warning(
                    "metrics are lost: %s: %s",
                    *(name, error),
                    extra={"event": "metrics_lost", "sink": name, "error": str(error)},
                )
            self._failing.add(sink)
        else:
            self._failing.discard(sink)
