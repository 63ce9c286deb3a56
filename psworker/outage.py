"""How long, and how often, to go on trying while no server answers."""

import logging
import math
import random
import threading
import time

from pswire.errors import ParameterServerError

_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 2.0
_NOTICE_S = 3.0

_log = logging.getLogger("psworker")


class Notices:
    """When a connection says that it waits, however many of its calls do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards `_last`.
        self._last = -math.inf

    def take(self, now: float) -> bool:
        """Say whether it is time for one, which is then given."""
        with self._lock:
            is_time = now - self._last >= _NOTICE_S
            if is_time:
                self._last = now
            return is_time


class Outage:
    """The time during which one call finds no server."""

    def __init__(self, address: str, patience_s: float, notices: Notices) -> None:
        """Begin now.

        Args:
            address: HOST:PORT, for the notices.
            patience_s: When to give up, in seconds.
            notices: Of the connection.
        """
        self._address = address
        self._patience_s = patience_s
        self._notices = notices
        self._began = time.monotonic()
        self._backoff_s = _FIRST_BACKOFF_S

    def next_pause_s(self, error: ParameterServerError) -> float:
        """Return how long to wait before the next attempt, or give up.

        Args:
            error: What the last attempt failed with.

        Raises:
            ParameterServerError: The same error, once patience has run out.
        """
        now = time.monotonic()
        waited = now - self._began
        if waited >= self._patience_s:
            last = str(error).removeprefix(f"{self._address}: ")
            raise type(error)(
                f"{self._address}: no answer for {waited:.0f} s; last: {last}"
            ) from error
        if waited >= _NOTICE_S and self._notices.take(now):
            _log.warning(
                "waiting for the parameter server at %s, %.0f of %.0f s: %s",
                self._address,
                waited,
                self._patience_s,
                error,
            )
        # Jitter: many workers that lost one server should not come back as one.
        pause = self._backoff_s * random.uniform(0.5, 1.0)
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return min(pause, self._patience_s - waited)
