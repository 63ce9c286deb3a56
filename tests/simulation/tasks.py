"""Threads of which one runs at a time, and stops only where it is told to."""

import threading
from collections.abc import Callable
from random import Random
from typing import Any

from kit.virtualdisk import Crashed
from simulation.clock import CLOCK

Until = Callable[[], bool]
Naps = Callable[[bool], float | None]
"""Says, at a lock or else at the disk, for how many seconds; None: not at all."""

_AT_DISK = (0.02, 0.2, 0.6)
_AT_LOCKS = 0.5
_SLEEP_S = (0, 0, 1, 10, 40)

_here = threading.local()
_idle: "list[_Thread]" = []


class Task:
    """Some work that may have to wait, or may be stopped for others to go on.

    Attributes:
        result: What it has returned.
        failure: What it has raised.
        is_over: Whether there is one of both.
        wakes_at: Until when others go on if any can, in seconds.
    """

    def __init__(self, work: Callable[[], Any], naps: Naps) -> None:
        """Do nothing yet.

        Args:
            work: To do.
            naps: Says for how long to stop.
        """
        self.result: Any = None
        self.failure: BaseException | None = None
        self.is_over = False
        self.wakes_at = 0.0
        self.naps = naps
        self._work = work
        self._until: Until = lambda: True
        self._is_killed = False
        self._thread: _Thread | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it waits for nothing."""
        return self._until()

    def go_on(self) -> None:
        """Let it run until it is over, or stops.

        Raises:
            Crashed: It has found out that the process is dead.
        """
        if self._thread is None:
            self._thread = _idle.pop() if _idle else _Thread()
            self._thread.task = self
        self._thread.switch()
        if self.is_over:
            _idle.append(self._thread)
            if isinstance(self.failure, Crashed) and not self._is_killed:
                raise self.failure

    def kill(self) -> None:
        """End it where it is."""
        self._is_killed = True
        while not self.is_over:
            self.go_on()

    def pause(self, until: Until = lambda: True) -> None:
        """Stop, called by its work, until something is so."""
        if not self._is_killed:
            assert self._thread
            self._until = until
            self._thread.switch_back()
        if self._is_killed:
            raise Crashed

    def run(self) -> None:
        """Do the work, in this thread."""
        try:
            if not self._is_killed:
                self.result = self._work()
        except BaseException as failure:
            self.failure = failure
        self.is_over = True


class _Thread:
    """A thread for one task after another."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self._outside, self._inside = threading.Lock(), threading.Lock()
        self._outside.acquire()
        self._inside.acquire()
        threading.Thread(target=self._run, name="simulated", daemon=True).start()

    def switch(self) -> None:
        self._inside.release()
        self._outside.acquire()

    def switch_back(self) -> None:
        self._outside.release()
        self._inside.acquire()

    def _run(self) -> None:
        self._inside.acquire()
        while task := self.task:
            _here.task = task
            task.run()
            self.task = None
            self.switch_back()


class Tasks:
    """What one process does at a time."""

    def __init__(self, random: Random) -> None:
        """Start with nothing to do.

        Args:
            random: Chooses what goes on, and where it stops.
        """
        self._random = random
        self._at_disk = random.choice(_AT_DISK)
        self._tasks: list[Task] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Callable[[], Any], *, at_locks: bool = False) -> Task:
        """Begin some work, and let it run until it is over, or stops.

        Args:
            work: To do.
            at_locks: Whether it may stop before and after it has a lock.
        """

        def naps(is_lock: bool) -> float | None:
            if is_lock:
                stops = at_locks and self._random.random() < _AT_LOCKS
            else:
                stops = self._random.random() < self._at_disk
            return self._random.choice(_SLEEP_S) if stops else None

        task = Task(work, naps)
        self._tasks.append(task)
        self._run(task)
        return task

    def do(self, work: Callable[[], Any]) -> Task:
        """Do some work that never waits for anything."""
        task = Task(work, lambda is_lock: None)
        task.run()
        return task

    def go_on(self) -> None:
        """Let something run that waits for nothing.

        Raises:
            AssertionError: There is none: all wait for each other.
        """
        ready = [task for task in self._tasks if task.is_ready]
        assert ready, "all that is to be done waits for something else"
        awake = [task for task in ready if task.wakes_at <= CLOCK.now]
        self._run(self._random.choice(awake or ready))

    def kill(self) -> None:
        """End all."""
        for task in self._tasks:
            task.kill()
        self._tasks = []

    def _run(self, task: Task) -> None:
        try:
            task.go_on()
        finally:
            if task.is_over:
                self._tasks.remove(task)


def stop_here(*, is_lock: bool = False) -> None:
    """Stop the task that calls this, if there is one and it is told to."""
    task = _task()
    nap_s = task.naps(is_lock) if task else None
    if task and nap_s is not None:
        task.wakes_at = CLOCK.now + nap_s
        task.pause()


def wait_until(until: Until) -> None:
    """Stop the task that calls this for as long as something is not so."""
    task = _task()
    while not until():
        assert task, "nobody else can do what this waits for"
        task.pause(until)


def _task() -> Task | None:
    return getattr(_here, "task", None)


def result(task: Task, *expected: type[Exception]) -> Any:
    """Return what a task has found, or else one of these errors that ended it."""
    if task.failure and not isinstance(task.failure, expected):
        raise task.failure
    return task.failure or task.result
