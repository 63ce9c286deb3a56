"""What stands in for `threading`, where tasks stand in for threads."""

import threading
from types import SimpleNamespace

from simulation.tasks import stop_here, wait_until


class Lock:
    """Stands in for `threading.Lock`."""

    def __init__(self) -> None:
        self._is_held = False

    def acquire(self) -> None:
        stop_here(is_lock=True)
        wait_until(lambda: not self._is_held)
        self._is_held = True

    def release(self) -> None:
        self._is_held = False
        stop_here(is_lock=True)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class Condition:
    """Stands in for `threading.Condition`."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._told = 0

    def wait(self) -> None:
        told = self._told
        self._lock.release()
        wait_until(lambda: self._told > told)
        self._lock.acquire()

    def notify_all(self) -> None:
        self._told += 1


class Thread:
    """Stands in for `threading.Thread`: whoever simulates does what it would do."""

    ident = None

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        pass


THREADING = SimpleNamespace(
    Lock=Lock,
    Condition=Condition,
    Thread=Thread,
    Event=threading.Event,
    BoundedSemaphore=threading.BoundedSemaphore,
)
"""The module."""
