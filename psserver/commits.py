"""The keeping of changes before anybody sees them: as many at a time as there are."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from psserver.changes import Change
from psserver.core import Core, Pending
from pswire.errors import ServerUnavailableError

Keep = Callable[[Sequence[Change]], None]
"""Makes changes last: all of them or, if it raises OSError, none."""


class StalledError(Exception):
    """Nobody knows yet what becomes of a change: it is being kept."""


class Commits:
    """Lets pushes wait until what they changed is kept.

    One of those that wait keeps what all of them have changed, while others come and
    wait for the next turn: so a disk that takes a millisecond to sync does so once for
    many pushes.
    """

    def __init__(
        self,
        core: Core,
        lock: threading.Lock,
        keep: Keep,
        on_taking: Callable[[bool], None] = lambda is_taking: None,
    ) -> None:
        """Start with nothing to keep.

        Args:
            core: Has the changes.
            lock: Guards it, and all fields of this.
            keep: Makes changes last; called without the lock, by one thread at a time.
            on_taking: Is told, with the lock, whether changes are taken.
        """
        self._core = core
        self._lock = lock
        self._keep = keep
        self._on_taking = on_taking
        self._settled = threading.Condition(lock)
        self._is_keeping = False
        self._is_stalled = False
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

    def stall(self, why: str) -> None:
        """Take nothing for a while, and have who waits already wait no longer.

        Args:
            why: What is told until then.
        """
        with self._lock:
            self._refuse(self._refusal or why)
            self._is_stalled = True
            self._settled.notify_all()

    def resume(self) -> None:
        """Take changes again: the trouble is over."""
        with self._lock:
            self._refuse(self._closed)
            self._is_stalled = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do something that all who come meanwhile wait for.

        Nothing else may be under way: there are no variables yet.
        """
        with self._lock:
            self._is_keeping = True
        try:
            yield
        finally:
            with self._lock:
                self._is_keeping = False
                self._settled.notify_all()

    def close(self, why: str) -> None:
        """Take nothing any more; what waits still and cannot be kept has not happened.

        Args:
            why: What is told from now on.
        """
        with self._lock:
            self._closed = why
            self._refuse(why)
            while self._is_keeping:
                self._settled.wait()
            self._core.roll_back((), why)
            self._settled.notify_all()

    def wait(self, pending: Pending) -> None:
        """Return, with the lock before and after, once what waits can be told.

        Raises:
            ServerUnavailableError: It was taken back.
            StalledError: It may be, or not: whoever keeps it gets no answer.
        """
        while not pending.is_settled:
            if self._is_stalled:
                raise StalledError(self._refusal)
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
            failure = self._try_to_keep(taken)
        finally:
            self._lock.acquire()
            self._is_keeping = False
        self._settle(taken, failure)

    def _refuse(self, why: str) -> None:
        """Take nothing from now on; empty: take changes."""
        self._refusal = why
        self._on_taking(not why)

    def _try_to_keep(self, taken: Sequence[Change]) -> Exception | None:
        try:
            self._keep(taken)
        except Exception as error:
            return error
        return None

    def _settle(self, taken: Sequence[Change], failure: Exception | None) -> None:
        if failure is None:
            self._core.publish()
        else:
            self._refuse(str(failure) or repr(failure))  # Some say nothing.
            self._core.roll_back(taken, self._refusal)
        self._settled.notify_all()
