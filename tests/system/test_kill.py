"""A server with a log that is killed again and again, while four workers push.

Push number k adds 1 to element k of A and of B, and brings a weight for C, whose rule
has momentum: C tells pushes that were replayed twice, or in another order. The workers
go on by themselves, so each of them learns what became of every push of its own.
"""

import itertools
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import psworker
from kit.failpoints import POINTS
from kit.forge import Forge
from pswire.values import Snapshot, Verdict

pytestmark = pytest.mark.soak

Size = Callable[[int, int], int]

WORKERS = 4
SEED = 8
DECAY = 0.5  # A power of two: the product is exact, fused with the sum or not.
CHECKPOINT_EVERY = 20  # Steps.
TIMEOUT_S = 60.0

RULE = f"""
import optax

rule = optax.multi_transform(
    {{"plain": optax.sgd(1.0), "heavy": optax.sgd(1.0, momentum={DECAY})}},
    {{"A": "plain", "B": "plain", "C": "heavy"}},
)
"""

# One life ends at each: {the point: the how manieth time it is reached, at most}. After
# a kill at log.after_sync there is a change to replay, which is the second thing that
# is taken up. A start that has replayed some saves a checkpoint, so what a checkpoint
# reaches kills in the recovery too.
KILLS = {
    **dict.fromkeys(POINTS, CHECKPOINT_EVERY),
    **dict.fromkeys((point for point in POINTS if point.startswith("ckpt.")), 3),
    "recover.mid": 1,
    "shutdown.mid": 1,
}


@dataclass(frozen=True, slots=True)
class Pushed:
    """A push that was acknowledged, and what was pulled with the acknowledgement."""

    worker: int
    number: int
    verdict: Verdict
    step: int
    generation: str


@dataclass(frozen=True, slots=True)
class History:
    """What the workers were told, each in order, and what there was at last."""

    pushes: list[Pushed]
    weights: npt.NDArray[np.float32]
    final: Snapshot[Any]

    @property
    def applied(self) -> list[Pushed]:
        """The applied pushes in the order of their steps."""
        applied = [push for push in self.pushes if push.verdict.applied]
        return sorted(applied, key=lambda push: push.verdict.step)


class Workers:
    """Push until they are told to end; half of them go past gRPC."""

    def __init__(self, address: str, weights: npt.NDArray[np.float32]) -> None:
        self.done = threading.Event()
        self._address = address
        self._weights = weights
        self._numbers = itertools.count()  # `next` is atomic.
        self._told = threading.Condition()
        self._acknowledged = 0

    def work(self, worker: int) -> list[Pushed]:
        pushes = []
        with psworker.connect(self._address, same_host=bool(worker % 2)) as client:
            snapshot = client.pull()
            while not self.done.is_set():
                number = next(self._numbers)
                verdict, snapshot = client.exchange(self._gradients(number), snapshot)
                a, b = snapshot.params["A"], snapshot.params["B"]
                assert a.tobytes() == b.tobytes()
                assert a.sum() == snapshot.step
                cut = snapshot.step, snapshot.generation
                pushes.append(Pushed(worker, number, verdict, *cut))
                self._tell()
        return pushes

    def wait_for(self, pushes: int) -> None:
        """Wait until so many more are acknowledged."""
        with self._told:
            enough = self._acknowledged + pushes
            assert self._told.wait_for(lambda: self._acknowledged >= enough, TIMEOUT_S)

    def _gradients(self, number: int) -> dict[str, npt.NDArray[np.float32]]:
        marked = np.zeros(len(self._weights), np.float32)
        marked[number] = -1.0
        return {"A": marked, "B": marked, "C": self._weights[number]}

    def _tell(self) -> None:
        with self._told:
            self._acknowledged += 1
            self._told.notify_all()


class Lives:
    """One server after another, of one data directory."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        (folder / "heavy.py").write_text(RULE)
        self._start = partial(
            forge.start,
            *("--rule", "heavy:rule", "--app-dir", str(folder)),
            *("--max-staleness", "6", "--durability", "log", "--keep", "2"),
            *("--data-dir", str(folder / "data")),
            *("--checkpoint-every", str(CHECKPOINT_EVERY)),
        )
        self._forge = forge
        self._random = random.Random(SEED)
        self._process = 0

    def begin(self) -> str:
        """Start one that nothing kills; return its address."""
        self._process = self._start()
        return self._forge.address()

    def kill(self, workers: Workers) -> None:
        """End that one at some moment."""
        workers.wait_for(self._random.randint(1, 100))
        os.kill(self._process, SIGKILL)
        assert self._forge.ended() == -SIGKILL

    def kill_at_each_point(self, workers: Workers) -> None:
        """Start one for each point that kills it."""
        for point, most in KILLS.items():
            self._kill_at(point, self._random.randint(1, most), workers)
            if point == "log.after_sync":
                self._kill_at("recover.mid", 2, workers)

    def _kill_at(self, point: str, time: int, workers: Workers) -> None:
        where = f"{point}({self._random.randint(0, 200)})" if "torn" in point else point
        process = self._start(failpoints=(f"{where}=kill@{time}",))
        if point == "shutdown.mid":
            self._forge.address()
            workers.wait_for(5)
            os.kill(process, SIGTERM)
        assert self._forge.ended() == -SIGKILL, where


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, size: Size) -> History:
    """Kill servers at each failpoint and at random moments, once; 20 in all.

    In the soak 151, at each failpoint three times.
    """
    folder = tmp_path_factory.mktemp("killed")
    pushes = size(2**12, 2**15)
    weights = np.random.default_rng(SEED).standard_normal((pushes, 4), np.float32)
    zeros = {name: np.zeros(pushes, np.float32) for name in "AB"}
    with Forge(folder / "servers.log", timeout_s=size(120, 3600)) as forge:
        lives = Lives(forge, folder)
        address = lives.begin()
        with (
            psworker.connect(address) as first,
            ThreadPoolExecutor(WORKERS, "worker") as pool,
        ):
            first.initialize({**zeros, "C": np.zeros(4, np.float32)})
            workers = Workers(address, weights)
            logs = [pool.submit(workers.work, worker) for worker in range(WORKERS)]
            try:
                for number in range(size(3, 100)):
                    lives.kill(workers)
                    if number % size(3, 34) == 0:
                        lives.kill_at_each_point(workers)
                    lives.begin()
            finally:
                workers.done.set()
            told = [push for log in logs for push in log.result(TIMEOUT_S)]
            return History(told, weights, first.pull())


def test_of_all_that_was_acknowledged_nothing_is_lost_and_nothing_applied_twice(
    history: History, size: Size
) -> None:
    """Among it are pushes that a kill has left without an answer, till the retry."""
    applied = np.zeros(len(history.weights), np.float32)
    applied[[push.number for push in history.applied]] = 1.0

    assert history.final.params["A"].tolist() == applied.tolist()
    assert history.final.step == len(history.applied)
    assert len(history.applied) >= size(100, 5000)
    assert any(push.verdict.duplicate for push in history.applied)


def test_the_steps_of_all_lives_are_one_row(history: History) -> None:
    """From 1 on, without a gap or a repeat, in one generation."""
    steps = [push.verdict.step for push in history.applied]

    assert steps == list(range(1, history.final.step + 1))
    assert {push.generation for push in history.pushes} == {history.final.generation}


def test_the_slots_are_those_of_one_uninterrupted_life(history: History) -> None:
    """C is the replay of the pushes in the order of their steps, bit for bit."""
    replayed = trace = np.zeros(4, np.float32)
    for push in history.applied:
        trace = history.weights[push.number] + np.float32(DECAY) * trace
        replayed = replayed - trace

    assert history.final.params["C"].tolist() == replayed.tolist()


def test_no_worker_sees_a_step_that_a_kill_undoes(history: History) -> None:
    """What it pulls never goes back, and has what it was told before."""
    for worker in range(WORKERS):
        pushes = [push for push in history.pushes if push.worker == worker]
        for before, after in pairwise(pushes):
            assert before.step < after.step
            assert before.verdict.step <= before.step
            assert before.step < after.verdict.step
