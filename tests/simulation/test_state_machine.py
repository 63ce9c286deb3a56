"""A server against its model, in every order of calls that hypothesis thinks of."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pswire import errors
from pswire.errors import ParameterServerError
from pswire.values import PushHeader, Snapshot
from simulation.damage import Damage
from simulation.faults import Faults
from simulation.requests import Initialize, Join, Pull, Push, Request, layout
from simulation.server import Settings, simulated
from simulation.witness import Witness

WIDTH = 16
LIMITS = st.sampled_from([0, 1, 4, None])
WORKERS = st.sampled_from(["ann", "bob"])
AHEAD = st.just(0) | st.sampled_from([-99, -1, 1])
Flaw = type[ParameterServerError] | None
FLAWS = st.sampled_from([None, errors.NonFiniteError, errors.VariableMismatchError])


class Life(RuleBasedStateMachine):
    """One data directory; the witness checks each answer and each start."""

    mode = "none"

    def __init__(self) -> None:
        super().__init__()
        random = Random(0)
        self.faults = Faults(random)
        self.witness = Witness(self.faults, random, WIDTH)
        self.damage = Damage(self.witness, self.faults, random)
        self.sessions: dict[str, str] = {}
        self.snapshots: dict[str, Snapshot[Any]] = {}
        self.pushes: list[Push] = []
        self.count = 0

    def teardown(self) -> None:
        self.witness.close()

    @initialize(limit=LIMITS)
    def begin(self, limit: int | None) -> None:
        self.start(limit)

    @rule(worker=WORKERS, is_new=st.booleans())
    def join(self, worker: str, is_new: bool) -> None:
        """A new session is the only one of its name that goes on."""
        if is_new or worker not in self.sessions:
            self.sessions[worker] = f"{worker}-{self.number()}"
            self.snapshots.pop(worker, None)
        self.ask(Join(worker, self.sessions[worker], rejoin=not is_new))

    @rule(worker=WORKERS)
    def pull(self, worker: str) -> None:
        snapshot = self.ask(Pull(self.sessions.get(worker, worker)))
        if isinstance(snapshot, Snapshot):
            self.snapshots[worker] = snapshot

    @rule(worker=WORKERS)
    def push(self, worker: str, ahead: int = 0, flaw: Flaw = None) -> None:
        """What was computed from the last snapshot of whoever has the name."""
        if worker not in self.snapshots:
            self.join(worker, False)
            self.pull(worker)
        if worker not in self.snapshots:
            return
        read = self.snapshots[worker]
        nbytes = layout(WIDTH).nbytes
        header = PushHeader(
            session=self.sessions[worker],
            seq=self.number(),
            generation=read.generation,
            step_read=read.step + ahead,
            nbytes=nbytes + 4 if flaw is errors.VariableMismatchError else nbytes,
        )
        self.pushes.append(Push(header, self.count, flaw))
        self.ask(self.pushes[-1])

    @rule(worker=WORKERS, ahead=AHEAD, flaw=FLAWS)
    def push_badly(self, worker: str, ahead: int, flaw: Flaw) -> None:
        self.push(worker, ahead, flaw)

    @precondition(lambda self: self.pushes)
    @rule(back=st.just(1) | st.integers(1, 5))
    def push_again(self, back: int) -> None:
        """The last one, or one that was overtaken."""
        self.ask(self.pushes[-min(back, len(self.pushes))])

    @precondition(lambda self: self.witness.waits)
    @rule(times=st.integers(1, 3))
    def go_on(self, times: int) -> None:
        for _ in range(times):
            self.witness.advance()

    @rule()
    def save(self) -> None:
        self.witness.save()

    @rule(limit=LIMITS)
    def stop(self, limit: int | None) -> None:
        self.witness.stop()
        self.witness.rest()
        self.start(limit)

    @rule(limit=LIMITS, cut_off=st.booleans(), is_damaged=st.booleans())
    def die(self, limit: int | None, cut_off: bool, is_damaged: bool) -> None:
        self.witness.end(cut_off=cut_off)
        if is_damaged and self.witness.promise.may_damage:
            self.damage.newest_checkpoint()
        self.start(limit)

    @invariant()
    def what_is_seen_is_one_step(self) -> None:
        """Whoever looks, and whenever."""
        self.witness.look()

    def start(self, limit: int | None) -> None:
        self.witness.start(Settings(self.mode, limit, 2), f"g{self.number()}")
        first = f"first-{self.number()}"
        self.ask(Join("first", first, rejoin=False))
        self.ask(Initialize(first))

    def ask(self, request: Request) -> Any:
        return self.witness.ask(request, None)

    def number(self) -> int:
        self.count += 1
        return self.count


class LifeWithCheckpoints(Life):
    """The same, with checkpoints."""

    mode = "checkpoint"


class LifeWithLog(Life):
    """The same, with a log."""

    mode = "log"


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.soak
@pytest.mark.parametrize("life", [Life, LifeWithCheckpoints, LifeWithLog])
def test_a_server_does_what_its_model_does(
    life: type[Life], size: Callable[[int, int], int]
) -> None:
    """Applied or dropped or refused, forgotten or kept: just as it should be."""
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=size(100, 2000),
            stateful_step_count=size(50, 100),
            derandomize=size(1, 0) == 1,
            deadline=None,
        ),
    )
