"""Room for bodies that are on their way, given out in turn."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

from pswire.errors import OverloadedError

_LEAST_S, _MOST_S = 0.02, 1.0  # What who is turned away is asked to wait.
_FORGOTTEN_S = 2.0  # Beyond that: who has not come back by then has lost its turn.
_SMALL = 0.01  # Of all room: what takes so little need not wait for the large.
_SHARE = 0.1  # Of what a body took lately, in what the next is thought to take.


class Budget:
    """Lets bodies in as long as there is room for them, others have to come again.

    Who is turned away gets a place in a queue, and whoever comes before its turn is
    turned away too: coming again and again brings nothing.
    """

    def __init__(self, nbytes: int) -> None:
        """Begin with all of it free.

        Args:
            nbytes: How much may be on its way at once, in bytes. A larger body has its
                turn alone.
        """
        self._nbytes = nbytes
        self._lock = threading.Lock()  # Guards all that follows.
        self._taken = 0
        self._bodies = 0
        self._queue: dict[str, tuple[int, float]] = {}  # {who: (bytes, until when)}
        self._body_s = _LEAST_S  # What one has taken of late.

    @property
    def taken(self) -> int:
        """How much is on its way, in bytes."""
        return self._taken

    @contextmanager
    def room(self, who: str, nbytes: int, clock: Callable[[], float]) -> Iterator[None]:
        """Have room for a body as long as the block lasts.

        Args:
            who: Whose body it is.
            nbytes: Its size.
            clock: Tells the seconds.

        Raises:
            OverloadedError: There is none yet; it says when to come again.
        """
        began = clock()
        self._enter(who, nbytes, began)
        try:
            yield
        finally:
            self._leave(nbytes, clock() - began)

    def _enter(self, who: str, nbytes: int, now: float) -> None:
        with self._lock:
            for late in [w for w, (_, until) in self._queue.items() if until < now]:
                del self._queue[late]
            ahead = list(takewhile(lambda other: other != who, self._queue))
            if nbytes <= _SMALL * self._nbytes:
                ahead = []
            before = sum(self._queue[other][0] for other in ahead)
            is_free = self._taken + before + nbytes <= self._nbytes
            if is_free or not (self._bodies or before):
                self._queue.pop(who, None)
                self._taken += nbytes
                self._bodies += 1
                return
            wait_s = min(max(_LEAST_S, (len(ahead) + 1) * self._body_s), _MOST_S)
            self._queue[who] = nbytes, now + wait_s + _FORGOTTEN_S
            taken = self._taken
        raise OverloadedError(
            f"push: expected room for {nbytes} bytes, got {taken} of {self._nbytes} "
            f"taken and {len(ahead)} waiting; come again in {wait_s:.2f} s",
            wait_s,
        )

    def _leave(self, nbytes: int, took_s: float) -> None:
        with self._lock:
            self._taken -= nbytes
            self._bodies -= 1
            self._body_s += _SHARE * (took_s - self._body_s)
