"""Admission: whatever workers, disk and network do, no push is over the limit."""

from functools import cache

import numpy as np
import optax
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

from psserver.changes import Change
from psserver.core import Core, Pending
from psserver.model import Model, start
from psserver.policies.admission import Admission
from psserver.policies.pull import Pull
from psserver.policies.terms import Terms
from psserver.rules import CompiledRule, State, require_rule
from pswire.body import Body
from pswire.layout import Layout
from pswire.values import PushHeader, Verdict

GRADIENT = Body.gather(
    Layout.of({"w": np.zeros(1, np.float32)}), {"w": np.zeros(1, np.float32)}
)
WORKERS = ("ann", "bob", "cleo", "dora", "ed")
WHICH = st.integers(0, len(WORKERS) - 1)
SILENT_S = 61.0


@pytest.mark.parametrize(
    ("limit", "step", "in_flight", "ahead", "waits_for"),
    [
        (0, 7, {}, [], None),
        (0, 7, {"b": 7}, [], "b"),
        (1, 7, {"b": 7}, [], None),
        (1, 8, {"b": 7}, [], "b"),
        (2, 8, {"b": 7}, [], None),
        (2, 8, {"b": 8, "c": 7}, [], "c"),
        (3, 8, {"b": 8, "c": 7}, [], None),
        (2, 9, {"b": 9, "c": 9}, [], None),
        (2, 9, {"b": 9, "c": 9, "d": 9}, [], "b"),
        (8, 9, {"b": 1}, [], "b"),
        (8, 8, {"b": 1}, [], None),
        (0, 7, {}, ["c", "b"], "c"),
        (1, 7, {}, ["c"], None),
        (1, 7, {"b": 7}, ["c"], "b"),
    ],
)
def test_a_pull_is_granted_as_its_formula_says_by_hand(
    limit: int,
    step: int,
    in_flight: dict[str, int],
    ahead: list[str],
    waits_for: str | None,
) -> None:
    """Who waits does so for the oldest pull, or else for the first who waits."""
    pull = Pull("a", step, limit, {}, in_flight, ahead)

    assert Admission().waits_for(pull) == waits_for


@cache
def _model() -> tuple[Model, State]:
    compiled = CompiledRule(require_rule(optax.sgd(1.0)), GRADIENT.layout)
    return start(compiled, GRADIENT, "first")


class Flights(RuleBasedStateMachine):
    """A server and workers, each of which pushes what it pulled, or ends.

    Granted pulls are `held`. An applied push is seen, and answered, once it is kept. If
    that fails it comes again, under its number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sessions: dict[str, str] = {}
        self.held: dict[str, int] = {}
        self.numbers: dict[str, int] = {}
        self.unanswered: dict[str, Pending] = {}
        self.judged: dict[str, PushHeader] = {}
        self.taken: list[Change] | None = None
        self.verdicts: list[Verdict] = []

    @initialize(
        limit=st.integers(0, 4), count=st.integers(2, len(WORKERS)), keeps=st.booleans()
    )
    def begin(self, limit: int, count: int, keeps: bool) -> None:
        self.core = Core(Terms(limit, Admission()), "g", keeps_changes=keeps)
        self.core.start(*_model())
        for worker in WORKERS[:count]:
            self.join(worker)

    @precondition(lambda self: self.idle)
    @rule(which=WHICH)
    def pull(self, which: int) -> None:
        self.ask(self.idle[which % len(self.idle)])

    @precondition(lambda self: self.busy)
    @rule(which=WHICH)
    def pull_again(self, which: int) -> None:
        """Without having pushed what it has: it never will."""
        self.ask(self.busy[which % len(self.busy)])

    @precondition(lambda self: self.busy)
    @rule(which=WHICH)
    def push_one(self, which: int) -> None:
        self.push(self.busy[which % len(self.busy)])

    @precondition(lambda self: self.answered)
    @rule(which=WHICH)
    def push_twice(self, which: int) -> None:
        """An answer was lost: it comes again, and whatever was pulled since stays."""
        header = self.judged[self.answered[which % len(self.answered)]]
        verdict = self.core.decide(header)
        assert verdict.duplicate
        self.core.settle(header, verdict, self.now)

    @precondition(lambda self: self.taken is None)
    @rule()
    def take(self) -> None:
        """Something begins to be kept; what comes meanwhile waits for its turn."""
        self.taken = list(self.core.take())

    @precondition(lambda self: self.taken is not None)
    @rule(fails=st.booleans())
    def keep(self, fails: bool) -> None:
        if fails:
            self.core.roll_back(self.taken or (), "the disk is full")
        else:
            self.core.publish()
        self.taken = None
        self.answer()

    @precondition(lambda self: self.busy)
    @rule(which=WHICH)
    def take_over(self, which: int) -> None:
        """What the worker's process before has pulled is never pushed."""
        self.join(self.busy[which % len(self.busy)])

    @precondition(lambda self: self.busy)
    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        """One is gone, and after a minute nobody waits for it; the others call."""
        gone = self.busy[which % len(self.busy)]
        del self.held[gone], self.sessions[gone]
        self.judged.pop(gone, None)
        self.pass_a_minute()

    @invariant()
    def nothing_is_dropped(self) -> None:
        assert all(verdict.applied for verdict in self.verdicts)

    def teardown(self) -> None:
        """Nobody waits for ever: who asks gets a turn once all else is pushed."""
        while self.taken is not None or self.unanswered:
            if self.taken is None:
                self.take()
            self.keep(False)
        for worker in self.busy:
            self.push(worker)
            self.take()
            self.keep(False)
        self.pass_a_minute()  # Nobody else is about to ask any more.
        for worker in self.sessions:
            assert self.ask(worker)
            self.push(worker)
            self.take()
            self.keep(False)
        self.nothing_is_dropped()

    @property
    def idle(self) -> list[str]:
        """Those that have nothing to push."""
        return [
            worker
            for worker in self.sessions
            if worker not in self.held and worker not in self.unanswered
        ]

    @property
    def busy(self) -> list[str]:
        """Those that have something to push."""
        return [worker for worker in self.held if worker not in self.unanswered]

    @property
    def answered(self) -> list[str]:
        """Those that have had a verdict, and wait for none."""
        return [worker for worker in self.judged if worker not in self.unanswered]

    def join(self, worker: str) -> None:
        self.held.pop(worker, None)
        self.judged.pop(worker, None)
        self.sessions[worker] = f"{worker}-{len(self.numbers)}"
        self.numbers[self.sessions[worker]] = 0
        self.core.join(worker, self.sessions[worker], self.now)

    def ask(self, worker: str) -> bool:
        self.core.counters.see(worker, self.now)
        turn = self.core.turn(self.sessions[worker], self.now)
        self.held.pop(worker, None)
        if turn.wait_s:
            assert turn.waits_for in {*self.core.counters.rows} - {worker}
            return False
        self.held[worker] = self.core.published.snapshot.step
        return True

    def push(self, worker: str) -> None:
        """The step that counts is the newest, though nobody sees it yet."""
        session, held = self.sessions[worker], self.held[worker]
        self.numbers[session] += 1
        seq, nbytes = self.numbers[session], GRADIENT.layout.nbytes
        header = PushHeader(session, seq, "g", held, nbytes)
        verdict = self.core.decide(header)
        if verdict.applied:
            self.core.apply(self.core.require_model().push(header, GRADIENT), verdict)
        self.verdicts.append(verdict)
        self.unanswered[worker] = self.core.settle(header, verdict, self.now)
        self.judged[worker] = header
        self.answer()

    def pass_a_minute(self) -> None:
        self.now += SILENT_S
        for worker in self.sessions:
            self.core.counters.see(worker, self.now)

    def answer(self) -> None:
        for worker, pending in [*self.unanswered.items()]:
            if pending.is_settled:
                del self.unanswered[worker]
                if pending.taken_back:  # It is pushed again, under its number.
                    self.numbers[self.sessions[worker]] -= 1
                    del self.judged[worker]
                else:
                    self.held.pop(worker)


@pytest.fixture
def quick() -> None:
    """Compile the rule before hypothesis looks at the time."""
    _model()


@pytest.mark.usefixtures("quick")
def test_no_push_is_ever_over_the_limit() -> None:
    """In any order of pulls, pushes, failures of the disk, ends and beginnings."""
    run_state_machine_as_test(
        Flights, settings=settings(max_examples=200, stateful_step_count=40)
    )
