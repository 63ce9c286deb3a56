"""How long calls and pushes take, and how many bytes they move."""

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from psserver.timing import Timing

Value = TypeVar("Value")

_MANY_NOTES = 1000

SECONDS = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""The buckets of all durations, in seconds, inclusive; one more has the rest."""


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations by their length.

    Attributes:
        counts: How many there are of up to each of `SECONDS`, less those of the bounds
            before, and of the rest.
        total_s: Their sum, in seconds.
    """

    counts: tuple[int, ...]
    total_s: float


class _Durations:
    __slots__ = ("_counts", "_total_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._total_s += seconds

    def freeze(self) -> Durations:
        return Durations(tuple(self._counts), self._total_s)


@dataclass(frozen=True, slots=True)
class Readings:
    """What a meter has measured so far.

    Attributes:
        pushes: {part of a push's life: durations}; see `Meter.judged`.
        calls: {(path, method, code): durations}.
        received: {(path, method): bytes}.
        sent: Likewise.
    """

    pushes: dict[str, Durations]
    calls: dict[tuple[str, str, str], Durations]
    received: dict[tuple[str, str], int]
    sent: dict[tuple[str, str], int]


class CallMeter:
    """Measures the calls of one method that come one way."""

    now = staticmethod(time.monotonic)

    def __init__(self, meter: "Meter", path: str, method: str) -> None:
        self._meter = meter
        self._path = path
        self._method = method

    def answered(
        self, code: str, began: float, received: int = 0, sent: int = 0
    ) -> None:
        """Note that a call has ended, and how.

        Args:
            code: Its gRPC status.
            began: What `now` said when it came.
            received: Its bytes, if they are not counted apart.
            sent: Likewise.
        """
        seconds = self.now() - began
        self._meter.answered(self._path, self._method, code, seconds, received, sent)

    def receiving(self, decode: Callable[[bytes], Value]) -> Callable[[bytes], Value]:
        """Count the bytes that are decoded."""

        def counted(message: bytes) -> Value:
            self._meter.moved(self._path, self._method, received=len(message))
            return decode(message)

        return counted

    def sending(self, encode: Callable[[Value], bytes]) -> Callable[[Value], bytes]:
        """Count the bytes that are encoded."""

        def counted(value: Value) -> bytes:
            message = encode(value)
            self._meter.moved(self._path, self._method, sent=len(message))
            return message

        return counted


class Meter:
    """Measures all calls of one server; any thread may call.

    What is noted is added up later, many notes at once: a call that has just been
    answered finds nothing of this in the processor's caches.
    """

    def __init__(self) -> None:
        self._notes: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        # Guards what follows, and who takes from `_notes`.
        self._lock = threading.Lock()
        self._compute, self._wire = _Durations(), _Durations()
        self._waiting, self._apply = _Durations(), _Durations()
        self._calls: defaultdict[tuple[str, str, str], _Durations]
        self._calls = defaultdict(_Durations)
        self._received: Counter[tuple[str, str]] = Counter()
        self._sent: Counter[tuple[str, str]] = Counter()

    def judged(self, timing: Timing) -> None:
        """Note where the time of a push went that got a verdict of its own.

        In compute: from its snapshot's arrival at the worker to its own start. On the
        wire: there and back, with all that packs and unpacks it. Waiting for the lock:
        while other pushes had it. Being applied, if it was.
        """
        self._note(self._add_push, timing)

    def answered(
        self,
        path: str,
        method: str,
        code: str,
        seconds: float,
        received: int = 0,
        sent: int = 0,
    ) -> None:
        """Note how long the server took for a call, how it ended, and `moved`."""
        self._note(self._add_call, path, method, code, seconds, received, sent)

    def moved(self, path: str, method: str, received: int = 0, sent: int = 0) -> None:
        """Note the bytes of messages, and of bodies that travel beside them."""
        self._note(self._add_bytes, path, method, received, sent)

    def read(self) -> Readings:
        """Return all of it, as of one moment."""
        with self._lock:
            self._add_up()
            return Readings(
                pushes={
                    "compute": self._compute.freeze(),
                    "wire": self._wire.freeze(),
                    "lock": self._waiting.freeze(),
                    "apply": self._apply.freeze(),
                },
                calls={key: taken.freeze() for key, taken in self._calls.items()},
                received=dict(self._received),
                sent=dict(self._sent),
            )

    def _note(self, add: Callable[..., None], *arguments: Any) -> None:
        self._notes.append((add, arguments))
        if len(self._notes) >= _MANY_NOTES:
            with self._lock:
                self._add_up()

    def _add_up(self) -> None:
        while self._notes:
            add, arguments = self._notes.popleft()
            add(*arguments)

    def _add_push(self, timing: Timing) -> None:
        self._waiting.add(timing.waited_s)
        if timing.apply_s is not None:
            self._apply.add(timing.apply_s)
        wire_s = timing.wire_s
        if wire_s is not None:
            self._compute.add(timing.held_s)
            self._wire.add(wire_s)

    def _add_call(
        self,
        path: str,
        method: str,
        code: str,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        self._calls[path, method, code].add(seconds)
        self._add_bytes(path, method, received, sent)

    def _add_bytes(self, path: str, method: str, received: int, sent: int) -> None:
        self._received[path, method] += received
        self._sent[path, method] += sent
