"""A server that dies at any moment, the one after it, and the one after that."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from kit.virtualdisk import Crashed
from pswire.values import PushHeader, Snapshot
from simulation.faults import Faults
from simulation.requests import Initialize, Join, Pull, Push, Request, layout
from simulation.server import Settings, simulated
from simulation.witness import Witness

WIDTH = 16
START = 60  # Operations, in which a server has started and saved.
FAULTS = ["killed", "cut off", "failing"]


class Lives:
    """Servers of one data directory, and what one worker after another does there.

    The witness checks every answer, and what each server has started with.
    """

    def __init__(self, seed: int) -> None:
        self.faults = Faults(Random(seed))
        self.witness = Witness(self.faults, WIDTH)
        self._count = 0

    def live(self, mode: str) -> None:
        """Start, push from a session of its own, save, push again, and stop."""
        session = self.begin(mode)
        for _ in self.witness.save():
            pass
        self._push(session, 2)
        self.witness.stop()

    def begin(self, mode: str) -> str:
        """Start, and push from a session of its own."""
        self._count += 1
        session = f"s{self._count}"
        self.witness.start(Settings(mode, 0, 2), f"g{self._count}", 0.0)
        self._ask(Join("ann", session, rejoin=False))
        self._ask(Initialize(session))
        self._push(session, 1)
        return session

    def _push(self, session: str, seq: int) -> None:
        snapshot = self._ask(Pull(session))
        if isinstance(snapshot, Snapshot):
            nbytes = layout(WIDTH).nbytes
            read = snapshot.generation, snapshot.step
            header = PushHeader(session, seq, *read, nbytes)
            self._ask(Push(header, self._count))

    def _ask(self, request: Request) -> Any:
        answer = self.witness.ask(request, None, 0.0)
        while self.witness.waits:
            self.witness.advance()
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
        lives.faults.arm(ahead, is_last=fault != "failing")
        try:
            lives.live(mode)
        except Crashed:
            lives.witness.end(cut_off=fault == "cut off")
        is_over = not lives.faults.has_struck
        lives.begin(mode)
        lives.witness.end(cut_off=True)
        lives.live(mode)
