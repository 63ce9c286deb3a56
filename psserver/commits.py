"""The keeping of changes before anybody sees them: as many at a time as there are."""

import threading
from collections.abc import Callable, Sequence

from psserver.changes import Change
from psserver.core import Core, Pending
from pswire.errors import ServerUnavailableError

Keep = Callable[[Sequence[Change]], None]
"""Makes changes last: all of them or, if it raises OSError, none."""


class Commits:
    """Lets pushes wait until what they changed is kept.

    One of those that wait keeps what all of them have changed, while others come and
    wait for the next turn: so a disk that takes a millisecond to sync does so once for
    many pushes.
    """

    def __init__(self, core: Core, lock: threading.Lock, keep: Keep) -> None:
        """Start with nothing to keep.

        Args:
            core: Has the changes.
            lock: Guards it, and all fields of this.
            keep: Makes changes last; called without the lock, by one thread at a time.
        """
        self._core = core
        self._lock = lock
        self._keep = keep
        self._settled = threading.Condition(lock)
        self._is_keeping = False
        self._refusal = self._closed = ""

    @property
    def refuses(self) -> bool:
        """Whether there is trouble."""
        return bool(self._refusal)

    def require_room(self) -> None:
        """Check, with the lock, that there is no trouble.

        Raises:
            ServerUnavailableError: What was to be kept last could not be.
        """
        if self._refusal:
            raise ServerUnavailableError(self._refusal)

    def refuse(self, why: str) -> None:
        """Take nothing for a while; what waits already goes on waiting.

        Args:
            why: What is told until then.
        """
        with self._lock:
            self._refusal = self._refusal or why

    def resume(self) -> None:
        """Take changes again: the trouble is over."""
        with self._lock:
            self._refusal = self._closed

    def close(self, why: str) -> None:
        """Take nothing any more; what waits still and cannot be kept has not happened.

        Args:
            why: What is told from now on.
        """
        with self._lock:
            self._closed = self._refusal = why
            while self._is_keeping:
                self._settled.wait()
            self._core.roll_back((), why)
            self._settled.notify_all()

    def wait(self, pending: Pending) -> None:
        """Return, with the lock before and after, once what waits can be told.

        Raises:
            ServerUnavailableError: It was taken back.
        """
        while not pending.is_settled:
            if self._is_keeping:
                self._settled.wait()
            elif self._closed:
                raise ServerUnavailableError(self._closed)
            else:
                self._keep_all()
        if pending.taken_back:
            raise ServerUnavailableError(pending.taken_back)

    def _keep_all(self) -> None:
        self._is_keeping = True
        taken = self._core.take()
        self._lock.release()
        try:
            self._keep(taken)
        except Exception as error:
            failure: Exception | None = error
        else:
            failure = None
        finally:
            self._lock.acquire()
            self._is_keeping = False
        if failure is None:
            self._core.publish()
        else:
            self._refusal = str(failure) or repr(failure)  # Some say nothing.
            self._core.roll_back(taken, self._refusal)
        self._settled.notify_all()
