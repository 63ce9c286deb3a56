"""Pushes that wait until what they changed is kept, many for one turn of the disk."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from psserver.changes import Applied, Change, Joined
from psserver.checkpoint import Checkpoint
from psserver.keeper import KeepNothing
from psserver.store import Store
from pswire.errors import ServerUnavailableError
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader, Reason, Verdict

TIMEOUT_S = 30.0
PUSHERS = 16
LIMIT = PUSHERS - 1
GRADIENT = {"w": np.full(2, -1.0, np.float32)}
LAYOUT = Layout.of(GRADIENT)
NAMES = [f"w{number}" for number in range(PUSHERS)]


class SlowDisk(KeepNothing):
    """Keeps changes when it is let, or fails to."""

    keeps_changes = True

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.reached = threading.Semaphore(0)
        self.begins = threading.Semaphore(0)
        self.may_begin = threading.Event()
        self.may_begin.set()
        self.first: Checkpoint | None = None
        self.kept: list[Sequence[Change]] = []
        self.error: OSError | None = None

    def keep(self, changes: Sequence[Change]) -> None:
        self.reached.release()
        assert self.is_open.wait(TIMEOUT_S)
        if self.error:
            raise self.error
        self.kept.append(changes)

    def begin(self, first: Checkpoint) -> None:
        self.begins.release()
        assert self.may_begin.wait(TIMEOUT_S)
        if self.error:
            raise self.error
        self.first = first

    def joined(self) -> list[str]:
        """Return the sessions whose joining was kept apart from any checkpoint."""
        return [
            change.session
            for changes in self.kept
            for change in changes
            if isinstance(change, Joined)
        ]

    def steps(self) -> list[list[int]]:
        return [
            [c.step for c in changes if isinstance(c, Applied)] for changes in self.kept
        ]


@dataclass
class Pushers:
    """Workers of a store of two zeros, with SGD of a rate of 1; each has a thread."""

    store: Store
    pool: ThreadPoolExecutor
    applied: threading.Semaphore

    def push(self, worker: int, seq: int = 1, step_read: int = 0) -> "Future[Verdict]":
        header = PushHeader(NAMES[worker], seq, "g", step_read, LAYOUT.nbytes)
        return self.pool.submit(self.store.push, header, lambda _: GRADIENT, 0.0)

    def apply(self, *workers: int, **more: int) -> list["Future[Verdict]"]:
        """Push, and return once all are applied, though nobody may see that yet."""
        pushes = [self.push(worker, **more) for worker in workers]
        for _ in workers:
            assert self.applied.acquire(timeout=TIMEOUT_S)
        self.store.status(0.0)  # Whoever applies has the lock until it waits.
        return pushes

    def join(self, worker: str) -> "Future[Any]":
        """Join, and return once that is known, though it may not be kept yet."""
        joining = self.pool.submit(self.store.join, worker, worker, 0.0)
        while not (joining.done() or worker in self._known()):
            pass
        return joining

    def seen(self) -> tuple[int, float]:
        """Return the step that pulls see, and the variables' value there."""
        snapshot = self.store.pull("", now=0.0)[1]
        return snapshot.step, float(snapshot.params["w"][0])

    def _known(self) -> set[str]:
        return {row.name for row in self.store.status(0.0).workers}


@pytest.fixture
def disk() -> SlowDisk:
    """Make a disk that is not let yet."""
    return SlowDisk()


def _open_store(rule: Any, disk: SlowDisk) -> Store:
    return Store(
        rule,
        rule_name="sgd",
        limits=Limits(LIMIT, None, 2**20, 2**20),
        generation="g",
        incarnation="i",
        now=0.0,
        keeper=disk,
    )


@pytest.fixture
def pushers(disk: SlowDisk, hook: Any) -> Iterator[Pushers]:
    """Start a store and 16 workers, all of which may push at once."""
    store = _open_store(hook.rule, disk)
    for name in NAMES:
        store.join(name, name, now=0.0)
    zeros = {"w": np.zeros(2, np.float32)}
    store.initialize(NAMES[0], LAYOUT, lambda layout: zeros, now=0.0)
    applied = threading.Semaphore(0)
    hook.run = applied.release
    with ThreadPoolExecutor(2 * PUSHERS, "test") as pool:
        yield Pushers(store, pool, applied)
        disk.is_open.set()


def test_all_that_wait_are_kept_in_one_turn(pushers: Pushers, disk: SlowDisk) -> None:
    """The first has a turn of its own; 15 come meanwhile, and share the next one."""
    pushes = pushers.apply(0)
    assert disk.reached.acquire(timeout=TIMEOUT_S)

    pushes += pushers.apply(*range(1, PUSHERS))
    disk.is_open.set()
    verdicts = [push.result(TIMEOUT_S) for push in pushes]

    assert disk.steps() == [[1], [*range(2, PUSHERS + 1)]]
    assert sorted(verdict.step for verdict in verdicts) == [*range(1, PUSHERS + 1)]
    assert pushers.seen() == (PUSHERS, float(PUSHERS))
    assert disk.first
    assert (list(disk.first.sessions), disk.joined()) == (NAMES, [])


def test_nobody_sees_what_is_not_kept(pushers: Pushers, disk: SlowDisk) -> None:
    """Neither a pull, nor the counters, nor a checkpoint; and who joins has to wait."""
    first, second = pushers.apply(0, 1)

    kept, status = pushers.store.lineage.checkpoint(), pushers.store.status(0.0)

    assert pushers.seen() == (0, 0.0)
    assert (status.step, status.counts.applied) == (0, 0)
    assert kept
    assert (kept.step, kept.variables["w"].tolist()) == (0, [0.0, 0.0])
    assert {row.last_seq for row in kept.sessions.values()} == {0}
    late = pushers.pool.submit(pushers.store.join, "late", "late", 0.0)
    with pytest.raises(TimeoutError):
        late.result(0.1)
    assert not any(push.done() for push in (first, second))
    disk.is_open.set()
    assert {first.result(TIMEOUT_S).step, second.result(TIMEOUT_S).step} == {1, 2}
    assert late.result(TIMEOUT_S).step > 0


def test_a_verdict_waits_for_the_steps_that_it_tells_of(
    pushers: Pushers, disk: SlowDisk
) -> None:
    """A duplicate of a push that waits, and a drop for steps that nobody has seen."""
    waiting = pushers.apply(*range(PUSHERS))

    told = [pushers.push(3), pushers.push(6, seq=2)]

    for verdict in told:
        with pytest.raises(TimeoutError):
            verdict.result(0.1)
    disk.is_open.set()
    repeated, dropped = (verdict.result(TIMEOUT_S) for verdict in told)
    assert repeated == waiting[3].result(TIMEOUT_S).repeated()
    assert dropped == Verdict(False, PUSHERS, PUSHERS, Reason.STALE)


def test_what_follows_from_what_is_kept_waits_for_nothing_more(
    pushers: Pushers, disk: SlowDisk
) -> None:
    """Or a stop could take it back, though its retry has been told of it."""
    (push,) = pushers.apply(0)
    assert disk.reached.acquire(timeout=TIMEOUT_S)
    retry = pushers.push(0)
    with pytest.raises(TimeoutError):
        retry.result(0.1)

    disk.is_open.set()

    assert retry.result(TIMEOUT_S) == push.result(TIMEOUT_S).repeated()
    assert disk.steps() == [[1]]


def test_nobody_is_forgotten_whose_push_waits(
    pushers: Pushers, disk: SlowDisk, hook: Any
) -> None:
    """Not after hours, nor when its name is taken over again and again."""
    (push,) = pushers.apply(0)
    later = 3 * 3600.0
    takeovers = [
        pushers.pool.submit(pushers.store.join, NAMES[0], f"next {number}", later)
        for number in range(12)
    ]
    while len(_sessions(pushers.store)) < 10:
        pass  # They have joined, and wait.

    before = pushers.store.lineage.checkpoint()
    disk.is_open.set()

    assert push.result(TIMEOUT_S).applied
    assert all(joined.result(TIMEOUT_S) for joined in takeovers)
    assert _sessions(pushers.store) >= {NAMES[0]}
    assert pushers.store.status(later).counts.applied == 1
    assert before
    again = _open_store(hook.rule, SlowDisk())
    again.lineage.restore(before)
    changes = [change for kept in disk.kept for change in kept]
    again.lineage.replay(changes, later)
    assert again.lineage.step == 1


def _sessions(store: Store) -> set[str]:
    kept = store.lineage.checkpoint()
    assert kept
    return {s for s, row in kept.sessions.items() if row.worker == NAMES[0]}


def test_what_cannot_be_kept_has_not_happened(pushers: Pushers, disk: SlowDisk) -> None:
    """Those that were being kept, and those that waited: all can come again."""
    pushes = pushers.apply(0)
    assert disk.reached.acquire(timeout=TIMEOUT_S)
    pushes += pushers.apply(*range(1, PUSHERS))
    late = pushers.join("late")
    disk.error = OSError("no room")

    disk.is_open.set()

    for calls in (*pushes, late), (pushers.push(0), pushers.join("later")):
        for call in calls:
            with pytest.raises(ServerUnavailableError, match="no room"):
                call.result(TIMEOUT_S)
    assert pushers.seen() == (0, 0.0)
    disk.error = None
    pushers.store.lineage.resume()
    verdicts = [pushers.push(i).result(TIMEOUT_S) for i in range(PUSHERS)]
    assert [v.step for v in verdicts] == [*range(1, PUSHERS + 1)]
    assert not any(verdict.duplicate for verdict in verdicts)
    assert pushers.seen() == (PUSHERS, float(PUSHERS))
    status = pushers.store.status(0.0)
    assert status.counts.applied == PUSHERS
    assert status.counts.rejected == {"SERVER_UNAVAILABLE": PUSHERS + 1}
    # It stays, as nobody can tell who has heard of it; so may the one that came while
    # others were told.
    assert disk.joined() in (["late"], ["late", "later"])


def test_while_the_disk_gives_no_answer_nobody_waits_but_who_asked_it(
    pushers: Pushers, disk: SlowDisk
) -> None:
    """Not who waits already, nor a new push, a retry, or who joins; a retry is told."""
    asking = pushers.apply(0)
    assert disk.reached.acquire(timeout=TIMEOUT_S)
    waiting = [*pushers.apply(*range(1, PUSHERS)), pushers.join("late")]

    pushers.store.lineage.stall("no answer")

    more = [pushers.push(0), pushers.push(0, seq=2), pushers.push(1)]
    for call in (*waiting, *more, pushers.join("late"), pushers.join("later")):
        with pytest.raises(ServerUnavailableError, match="no answer"):
            call.result(TIMEOUT_S)
    disk.is_open.set()
    assert asking[0].result(TIMEOUT_S).step == 1
    pushers.store.lineage.resume()
    retries = [pushers.push(i).result(TIMEOUT_S) for i in range(PUSHERS)]
    assert all(verdict.applied and verdict.duplicate for verdict in retries)
    assert sorted(v.step for v in retries) == [*range(1, PUSHERS + 1)]
    counts = pushers.store.status(0.0).counts
    assert (counts.applied, counts.duplicate) == (PUSHERS, PUSHERS)
    assert counts.rejected == {"SERVER_UNAVAILABLE": len(more)}


def test_nobody_waits_for_a_first_model_that_the_disk_gives_no_answer_to(
    disk: SlowDisk, hook: Any
) -> None:
    """Neither who joins meanwhile, nor who brings another; in the end it is there."""
    store = _open_store(hook.rule, disk)
    store.join("w0", "w0", now=0.0)
    disk.may_begin.clear()
    with ThreadPoolExecutor(3, "test") as pool:
        pushers = Pushers(store, pool, threading.Semaphore(0))
        brought = pool.submit(store.initialize, "w0", LAYOUT, lambda _: GRADIENT, 0.0)
        assert disk.begins.acquire(timeout=TIMEOUT_S)
        late = pushers.join("late")

        store.lineage.stall("no answer")

        other = pool.submit(store.initialize, "w0", LAYOUT, lambda _: GRADIENT, 0.0)
        for call in (late, other):
            with pytest.raises(ServerUnavailableError, match="no answer"):
                call.result(TIMEOUT_S)
        disk.may_begin.set()
        assert brought.result(TIMEOUT_S)


@pytest.mark.parametrize("error", [None, OSError("no room")])
def test_who_joins_while_the_first_model_is_kept_waits_for_that(
    disk: SlowDisk, hook: Any, error: OSError | None
) -> None:
    """It is in no checkpoint: the next thing to be kept is that it has joined."""
    store = _open_store(hook.rule, disk)
    store.join("w0", "w0", now=0.0)
    disk.may_begin.clear()
    with ThreadPoolExecutor(2, "test") as pool:
        pushers = Pushers(store, pool, threading.Semaphore(0))
        brought = pool.submit(store.initialize, "w0", LAYOUT, lambda _: GRADIENT, 0.0)
        assert disk.begins.acquire(timeout=TIMEOUT_S)
        late = pushers.join("late")
        with pytest.raises(TimeoutError):
            late.result(0.1)
        disk.error = error
        disk.is_open.set()
        disk.may_begin.set()

        assert late.result(TIMEOUT_S).generation == "g"
        assert (brought.exception(TIMEOUT_S) is None) == (error is None)

    assert disk.joined() == ([] if error else ["late"])
    disk.error = None
    assert store.initialize("w0", LAYOUT, lambda _: GRADIENT, now=0.0)
    assert disk.first
    assert list(disk.first.sessions) == ["w0", *(["late"] if error else [])]


def test_a_step_of_two_pushes_is_kept_for_both_or_for_neither(
    pushers: Pushers, disk: SlowDisk
) -> None:
    """What could not be kept comes again, and then they make one step together."""
    pushers.store.set({"staleness_policy": "backup:2"})
    disk.error = OSError("no room")
    disk.is_open.set()
    lost = [pushers.push(0), pushers.push(1)]
    for push in lost:
        with pytest.raises(ServerUnavailableError, match="no room"):
            push.result(TIMEOUT_S)
    before = pushers.seen()

    disk.error = None
    pushers.store.lineage.resume()
    verdicts = [p.result(TIMEOUT_S) for p in (pushers.push(0), pushers.push(1))]

    assert before == (0, 0.0)
    assert verdicts == [Verdict(applied=True, staleness=0, step=1)] * 2
    assert pushers.seen() == (1, 1.0)
    assert disk.steps() == [[1]]
    assert pushers.store.status(0.0).counts.applied == 2


def test_what_was_taken_back_compensates_nothing_later(
    pushers: Pushers, disk: SlowDisk
) -> None:
    """Its steps are forgotten, older ones not, and the mean squares begin anew."""
    store = pushers.store
    spec = "delay-compensation:1,adaptive"
    disk.is_open.set()
    store.set({"max_staleness": "1", "staleness_policy": spec})
    (kept,) = pushers.apply(0)
    assert kept.result(TIMEOUT_S).step == 1
    disk.is_open.clear()
    lost = [*pushers.apply(1, step_read=1), *pushers.apply(2, step_read=1)]
    disk.error = OSError("no room")
    disk.is_open.set()
    for push in lost:
        with pytest.raises(ServerUnavailableError, match="no room"):
            push.result(TIMEOUT_S)

    disk.error = None
    store.lineage.resume()
    verdicts = [
        push.result(TIMEOUT_S)
        for seq in (2, 3)
        for push in pushers.apply(0, seq=seq, step_read=1)
    ]

    assert [verdict.staleness for verdict in verdicts] == [0, 1]
    # Each push adds 1, and the second one is compensated for the first.
    square = 0.95 * 0.05 + 0.05
    step, value = pushers.seen()
    assert step == 3
    assert value == pytest.approx(3 - 1 / np.sqrt(square + 1e-7))


def test_a_first_model_that_cannot_be_kept_is_not_there(
    disk: SlowDisk, hook: Any
) -> None:
    """Whoever brought it may bring it again."""
    store = _open_store(hook.rule, disk)
    store.join("w0", "w0", now=0.0)
    disk.error = OSError("no room")

    with pytest.raises(ServerUnavailableError, match="no room"):
        store.initialize("w0", LAYOUT, lambda layout: GRADIENT, now=0.0)

    assert not store.status(0.0).initialized
    disk.error = None
    assert store.initialize("w0", LAYOUT, lambda layout: GRADIENT, now=0.0)
