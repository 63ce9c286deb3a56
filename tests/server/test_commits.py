"""Pushes that wait until what they changed is kept, many for one turn of the disk."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import optax
import pytest

from psserver.changes import Applied, Change, Joined
from psserver.checkpoint import Checkpoint
from psserver.keeper import KeepNothing
from psserver.store import Store
from pswire.body import Arrays
from pswire.errors import ServerUnavailableError, StepReadError
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader, Reason, Verdict

TIMEOUT_S = 30.0
PUSHERS = 16
GRADIENT = {"w": np.full(2, -1.0, np.float32)}
LAYOUT = Layout.of(GRADIENT)
NAMES = [f"w{number}" for number in range(PUSHERS)]


class SlowDisk(KeepNothing):
    """Keeps changes when it is let, or fails to."""

    keeps_changes = True

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.reached = threading.Semaphore(0)
        self.kept: list[Sequence[Change]] = []
        self.error: OSError | None = None

    def keep(self, changes: Sequence[Change]) -> None:
        self.reached.release()
        assert self.is_open.wait(TIMEOUT_S)
        if self.error:
            raise self.error
        self.kept.append(changes)

    def begin(self, first: Checkpoint) -> None:
        self.first = first

    def steps(self) -> list[list[int]]:
        return [
            [c.step for c in changes if isinstance(c, Applied)]
            for changes in self.kept
        ]


@pytest.fixture
def disk() -> Iterator[SlowDisk]:
    disk = SlowDisk()
    yield disk
    disk.is_open.set()


@pytest.fixture
def store(disk: SlowDisk) -> Store:
    """Start a store of two zeros, SGD with a rate of 1 and a limit of 20 steps."""
    limits = Limits(20, None, 2**20, 2**20)
    names = {"rule_name": "sgd", "generation": "g", "incarnation": "i"}
    store = Store(optax.sgd(1.0), limits=limits, now=0.0, keeper=disk, **names)
    for name in NAMES:
        store.join(name, name, now=0.0)
    zeros = {"w": np.zeros(2, np.float32)}
    store.initialize(NAMES[0], LAYOUT, lambda layout: zeros, now=0.0)
    return store


@pytest.fixture
def push(store: Store) -> Iterator[Callable[..., "Future[Verdict]"]]:
    """Push in a thread; yields a function of the worker's number and of the header."""
    with ThreadPoolExecutor(2 * PUSHERS, "test") as pool:

        def begin(worker: int, seq: int = 1, step_read: int = 0) -> "Future[Verdict]":
            header = PushHeader(NAMES[worker], seq, "g", step_read, LAYOUT.nbytes)
            receive: Callable[[Layout], Arrays] = lambda layout: GRADIENT  # noqa: E731
            return pool.submit(store.push, header, receive, 0.0)

        yield begin


def value(store: Store) -> float:
    """Return the step as the variables tell it."""
    return float(store.pull("", now=0.0)[1].params["w"][0])


def wait_for(store: Store, step: int) -> None:
    """Wait until so many pushes are applied, though nobody may see that yet."""
    applied = threading.Event()
    while not applied.wait(0.001):
        with pytest.raises(StepReadError) as told:
            ahead = PushHeader("w0", 99, "g", 2**40, LAYOUT.nbytes)
            store.push(ahead, lambda layout: GRADIENT, 0.0)
        if f"expected 0 to {step} steps" in str(told.value):
            applied.set()
