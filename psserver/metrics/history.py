"""A run's figures over time, in memory of a fixed size."""

import threading
from typing import Any

from psserver.metrics.recorder import Sample

_COLUMNS = ("time", "step", "applied", "dropped", "loss")
_CAPACITY = 1200


class History:
    """A sink that keeps samples of the whole run, the more apart the longer it lasts.

    Whenever it is full, it forgets every second sample, and from then on keeps half as
    many. All but the loss are counts, so that the difference of two samples tells all
    that happened between them; the first one is of the server's start.
    """

    def __init__(self, incarnation: str, *, capacity: int = _CAPACITY) -> None:
        """Begin.

        Args:
            incarnation: Of the server.
            capacity: The most samples kept; even.
        """
        self._incarnation = incarnation
        self._capacity = capacity
        # Guards what follows.
        self._lock = threading.Lock()
        self._rows: list[tuple[Any, ...]] = []
        self._seen = 0
        self._every = 1

    def write(self, sample: Sample) -> None:
        """Keep a sample, if it is one in so many."""
        with self._lock:
            if self._seen % self._every == 0:
                if len(self._rows) == self._capacity:
                    self._rows = self._rows[::2]
                    self._every *= 2
                self._rows.append(tuple(sample[column] for column in _COLUMNS))
            self._seen += 1

    def close(self) -> None:
        """Do nothing: what was kept can still be read."""

    def to_json(self) -> dict[str, Any]:
        """Return the server's incarnation, and the columns: lists of equal length."""
        with self._lock:
            rows = list(self._rows)
        columns = zip(*rows, strict=True) if rows else ((),) * len(_COLUMNS)
        return {
            "incarnation": self._incarnation,
            **{name: list(c) for name, c in zip(_COLUMNS, columns, strict=True)},
        }
