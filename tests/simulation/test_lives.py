"""A server that dies at any moment, the one after it, and the one after that."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from kit.virtualdisk import Crashed
from pswire.values import PushHeader, Snapshot
from simulation.damage import Damage
from simulation.faults import Faults
from simulation.requests import Initialize, Join, Pull, Push, Request, layout
from simulation.server import Settings, simulated
from simulation.witness import Witness

WIDTH = 16
START = 60  # Operations, in which a server has started and saved.
FAULTS = ["killed", "cut off", "failing", "failing, then cut off"]


class Lives:
    """Servers of one data directory, and what one worker after another does there.

    The witness checks every answer, and what each server has started with.
    """

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self.faults = Faults(random)
        self.witness = Witness(self.faults, random, WIDTH)
        self.damage = Damage(self.witness, self.faults, random)
        self._count = 0

    def live(self, mode: str) -> None:
        """Start, and do all that there is; push again, let one join, and stop."""
        session = self.begin(mode)
        self._push(session, 2)
        self._join("ann")
        self.witness.stop()
        self.witness.rest()

    def begin(self, mode: str) -> str:
        """Start, push from a session of its own, and save while others join."""
        self._count += 1
        self.witness.start(Settings(mode, 0, 2), f"g{self._count}")
        session = self._join("ann")
        self._ask(Initialize(session))
        self._ask(Initialize(self._join("bob")))  # If the first was refused.
        self._push(session, 1)
        self.witness.save()
        session = self._join("ann")
        self._join("bob")
        return session

    def end(self) -> None:
        """Let power fail, and the newest checkpoint be damaged, if one may be."""
        self.witness.end(cut_off=True)
        if self.witness.promise.may_damage:
            self.damage.newest_checkpoint()

    def _join(self, worker: str) -> str:
        self._count += 1
        session = f"{worker}-{self._count}"
        self._ask(Join(worker, session, rejoin=False))
        return session

    def _push(self, session: str, seq: int) -> None:
        snapshot = self._ask(Pull(session))
        if isinstance(snapshot, Snapshot):
            nbytes = layout(WIDTH).nbytes
            read = snapshot.generation, snapshot.step
            header = PushHeader(session, seq, *read, nbytes)
            self._ask(Push(header, self._count))

    def _ask(self, request: Request) -> Any:
        answer = self.witness.ask(request, None)
        if answer is None:
            answers = [answer for _, answer in self.witness.rest()]
            return answers[0] if answers else None
        return answer


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", ["log", "checkpoint"])
@pytest.mark.parametrize("before", ["log", "checkpoint", "none"])
def test_whatever_moment_ends_a_server_the_next_ones_go_on(
    before: str, mode: str, fault: str, size: Callable[[int, int], int]
) -> None:
    """Each operation on the disk is the last once; after the next life power fails."""
    ahead, is_over = 0, False
    while not is_over:
        ahead += 1 if ahead < START else size(5, 1)
        print(f"{ahead=}")
        lives = Lives(ahead)
        lives.live(before)
        lives.faults.arm(ahead, is_last="failing" not in fault)
        try:
            if "then" in fault:
                lives.begin(mode)
                lives.end()
            else:
                lives.live(mode)
        except Crashed:
            lives.witness.end(cut_off=fault == "cut off")
        is_over = not lives.faults.has_struck
        lives.begin(mode)
        lives.end()
        lives.live(mode)
