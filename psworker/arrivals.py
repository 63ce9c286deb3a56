"""When snapshots came: what the server needs to tell where staleness came from."""

import threading
import time
from collections.abc import Callable

from pswire._generated import parameter_server_pb2 as pb

_MAX_KEPT = 16  # Overlapped, a worker computes from one of the last few.


class Arrivals:
    """The newest arrivals of a session's snapshots; any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with none.

        Args:
            clock: Tells the seconds; it never goes back.
        """
        self._clock = clock
        self._lock = threading.Lock()  # Guards `_kept`.
        self._kept: dict[tuple[str, int], tuple[float, float]] = {}

    def note(self, header: pb.SnapshotHeader) -> None:
        """Note that a snapshot has come whole, or that it is still the newest."""
        key = (header.generation, header.step)
        with self._lock:
            self._kept.pop(key, None)  # What is set anew is the newest again.
            self._kept[key] = (header.served_at, self._clock())
            if len(self._kept) > _MAX_KEPT:
                del self._kept[next(iter(self._kept))]

    def stamp(self, header: pb.PushHeader) -> None:
        """Say in a push that starts now how old its snapshot is, if that is known."""
        with self._lock:
            kept = self._kept.get((header.generation, header.step_read))
        if kept:
            header.served_at, arrived = kept
            header.held_s = self._clock() - arrived
