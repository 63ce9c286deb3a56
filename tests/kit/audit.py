"""The audit: workers that mark what they push, and whose calls must be one history.

Of the variables A and B, each push adds 1 to the same element, so that they are equal
and their sum is the step, in every snapshot.

`python -m kit.audit ADDRESS NAME ELEMENT ELEMENTS FILE` is such a worker in a process
of its own: it writes its calls to the file, one a line, says "ready" after the first
ones, and goes on until its input ends.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

import psworker
from pswire.values import Snapshot


class Timed(Protocol):
    """A call, and when it was on its way, in nanoseconds of the machine's clock.

    Attributes:
        sent: Before its first attempt.
        returned: When its answer was there.
        step: That the answer told.
    """

    @property
    def sent(self) -> int: ...
    @property
    def returned(self) -> int: ...
    @property
    def step(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a worker's, an exchange being two; see `Timed`.

    Attributes:
        worker: Its name.
        pushed: Whether it is a push, which made the step.
    """

    worker: str
    sent: int
    returned: int
    step: int
    pushed: bool

    @classmethod
    def read(cls, line: str) -> Self:
        """The inverse of `str`."""
        worker, sent, returned, step, pushed = line.split()
        return cls(worker, int(sent), int(returned), int(step), pushed == "True")

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))


class Calls:
    """What workers have noted so far, to wait for in other threads."""

    def __init__(self) -> None:
        self.noted: list[Call] = []
        self._changed = threading.Condition()

    def note(self, call: Call) -> None:
        """Add one."""
        with self._changed:
            self.noted.append(call)
            self._changed.notify_all()

    def wait(self, are_enough: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Wait until something is so that another call can make so; say whether it is.

        Args:
            are_enough: Says so; there are no new ones meanwhile.
            timeout_s: How long to wait at the most, in seconds.
        """
        with self._changed:
            return self._changed.wait_for(are_enough, timeout_s)


def zeros(elements: int) -> dict[str, Any]:
    """Make the first variables."""
    return {name: np.zeros(elements, np.float32) for name in "AB"}


def work(
    client: psworker.Client,
    element: int,
    elements: int,
    told: threading.Event,
    note: Callable[[Call], object],
) -> None:
    """Exchange until told to end.

    Args:
        client: The worker.
        element: That its pushes add to.
        elements: How many there are.
        told: See above.
        note: Is told every call.
    """
    marked = np.zeros(elements, np.float32)
    marked[element] = -1.0
    snapshot = client.pull()
    while not told.is_set():
        sent = time.monotonic_ns()
        verdict, snapshot = client.exchange({"A": marked, "B": marked}, snapshot)
        times = sent, time.monotonic_ns()
        assert verdict.applied
        require_whole(snapshot)
        note(Call(client.name, *times, verdict.step, pushed=True))
        note(Call(client.name, *times, snapshot.step, pushed=False))


def require_whole(snapshot: Snapshot[Any]) -> None:
    """Check that a snapshot is of one step."""
    marks = snapshot.params["A"]
    assert marks.tolist() == snapshot.params["B"].tolist()
    assert marks.sum() == snapshot.step


def require_order(calls: Iterable[Timed], pushed: Callable[[Any], bool]) -> None:
    """Check that every call saw what had been answered before it was sent.

    Args:
        calls: Those of all clients.
        pushed: Says whether a call is a push that made its step.
    """
    ordered = sorted(calls, key=lambda call: call.returned)
    returned = np.array([call.returned for call in ordered])
    newest = np.maximum.accumulate([call.step for call in ordered])
    for call in ordered:
        answered = int(np.searchsorted(returned, call.sent))
        seen = int(newest[answered - 1]) if answered else 0
        assert call.step >= seen + pushed(call), call


def require_not_ahead(
    calls: Iterable[Timed], pushes: Iterable[Timed], unknown: int = 0
) -> None:
    """Check that no call saw more steps than pushes had been sent.

    Args:
        calls: Those of all clients.
        pushes: Likewise.
        unknown: How many more there may have been, at any time.
    """
    sent = np.sort([push.sent for push in pushes])
    for call in calls:
        known = int(np.searchsorted(sent, call.returned))
        assert call.step <= known + unknown, call


def require_sound(calls: Sequence[Call], last: Snapshot[Any], unknown: int = 0) -> None:
    """Check that the calls of workers that `work` are one history.

    Args:
        calls: Of all of them; each one's in their order.
        last: What was pulled after them.
        unknown: How many pushes may have been applied besides.
    """
    require_whole(last)
    pushes = [call for call in calls if call.pushed]
    steps = {push.step for push in pushes}
    assert len(steps) == len(pushes)
    assert max(steps) <= last.step <= len(steps) + unknown
    for worker in {call.worker for call in calls}:
        own = [c.step for c in calls if c.worker == worker and not c.pushed]
        assert all(before <= after for before, after in pairwise(own))
    require_order(calls, lambda call: call.pushed)
    require_not_ahead(calls, pushes, unknown)


def main(address: str, name: str, element: str, elements: str, file: str) -> None:
    """Be a worker; see the module."""
    told, has_begun = threading.Event(), threading.Event()

    def listen() -> None:
        sys.stdin.read()
        told.set()

    threading.Thread(target=listen, daemon=True).start()
    with psworker.connect(address, name=name) as client, Path(file).open("a") as log:

        def note(call: Call) -> None:
            print(call, file=log, flush=True)
            if not has_begun.is_set():
                has_begun.set()
                print("ready", flush=True)

        work(client, int(element), int(elements), told, note)


if __name__ == "__main__":
    main(*sys.argv[1:])
