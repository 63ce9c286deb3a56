"""Whom a server forgets, and what that must not change."""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
import pytest

from psserver.changes import Applied, Change, Joined
from psserver.decision import Session
from psserver.sessions import Entry, Sessions
from psserver.store import Store
from pswire.body import Body
from pswire.errors import (
    GenerationError,
    SessionSupersededError,
    SessionUnknownError,
    VariableMismatchError,
)
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader, Verdict

HOUR_S = 3600.0
SEED = 5
UP = {"w": np.full(2, -1, np.float32)}
LAYOUT = Layout.of(UP)
SUPERSEDED = r"^session: expected the newest of worker ann, got s0; another process"


@dataclass
class Server:
    """A store and the time it is told."""

    store: Store
    now: float = 0.0

    def join(self, worker: str, session: str, rejoin: bool = False) -> None:
        self.store.join(worker, session, self.now, rejoin)

    def push(self, session: str, seq: int, step_read: int, **changes: Any) -> Verdict:
        settings = {"nbytes": LAYOUT.nbytes, **changes}
        header = PushHeader(session, seq, "g", step_read, **settings)
        return self.store.push(header, lambda layout: UP, self.now)

    def knows(self, session: str) -> bool:
        try:
            self.store.pull(session, self.now)
        except SessionUnknownError:
            return False
        except SessionSupersededError:
            pass
        return True

    def recovered(self, log: Sequence[Change]) -> "Server":
        """Return a server that goes on from a checkpoint of this one and a log."""
        again, checkpoint = open_store(), self.store.lineage.checkpoint()
        assert checkpoint is not None
        again.lineage.restore(checkpoint)
        again.lineage.replay(log, self.now)
        return Server(again, self.now)

    def variables(self) -> list[float]:
        variables: list[float] = self.store.pull("", self.now)[1].params["w"].tolist()
        return variables


def open_store() -> Store:
    """Make one without variables."""
    return Store(
        optax.sgd(1.0),
        rule_name="sgd",
        limits=Limits(None, None, max_model_nbytes=1000, max_unary_nbytes=1000),
        generation="g",
        incarnation="i",
        now=0.0,
    )


@pytest.fixture
def server() -> Server:
    """Make a server whose variables have been brought by somebody gone since then."""
    store = open_store()
    store.join("first", "first", now=0.0)
    zeros = {"w": np.zeros(2, np.float32)}
    store.initialize("first", LAYOUT, lambda layout: zeros, now=0.0)
    return Server(store)


def test_who_is_forgotten_has_to_join_and_the_log_says_who_it_was(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """All sessions of the worker are; one that has called within the hour is not."""
    caplog.set_level(logging.INFO, "psserver")
    for session in ("s0", "s1"):
        server.join("ann", session)
    server.join("bob", "b")
    server.now = HOUR_S
    server.store.pull("b", server.now)
    server.now = HOUR_S + 1

    server.join("eve", "e")

    known = {each for each in ("first", "s0", "s1", "b", "e") if server.knows(each)}
    assert known == {"b", "e"}
    told = [r.getMessage() for r in caplog.records if vars(r)["event"] == "forgotten"]
    assert told == [
        f"worker {name} is forgotten: it has not called for an hour"
        for name in ("first", "ann")
    ]


def test_joining_is_a_call(server: Server) -> None:
    """Whoever joins again after hours is as well known as before."""
    server.join("ann", "s0")
    first = server.push("s0", 1, step_read=0)
    server.now = 10 * HOUR_S

    server.join("ann", "s0", rejoin=True)

    assert server.push("s0", 1, step_read=0) == first.repeated()


def test_memory_is_bounded_however_many_workers_come_and_go(server: Server) -> None:
    """10,000 of them, a minute apart, of which the last hour's are known."""
    workers, plan = 10_000, random.Random(SEED)
    received = Counter[str]()
    for number in range(workers):
        server.now = 60.0 * number
        session = f"s{number}"
        server.join(f"w{number}", session)
        step = server.store.pull("", server.now)[1].step
        way = plan.choice(("applied", "duplicate", "rejected"))
        with suppress(VariableMismatchError):
            server.push(session, 1, step, nbytes=1 if way == "rejected" else 8)
        if way == "duplicate":
            server.push(session, 1, step)
        received[way] += 1

    status = server.store.status(server.now)

    assert len(status.workers) == 61
    assert sum(server.knows(f"s{number}") for number in range(workers)) == 61
    parts = [status.unjoined, *(worker.counts for worker in status.workers)]
    assert status.counts.applied == received["applied"] + received["duplicate"]
    for of in ("applied", "duplicate", "received"):
        assert sum(getattr(part, of) for part in parts) == getattr(status.counts, of)
    assert status.counts.received == workers + received["duplicate"]
    assert status.counts.rejected == {"VARIABLE_MISMATCH": received["rejected"]}


def test_of_the_sessions_of_one_name_the_newest_nine_are_known(server: Server) -> None:
    """Eight of them are told that they are superseded, and so is whoever was before."""
    for number in range(1000):
        server.join("ann", f"s{number}")

    known = [number for number in range(1000) if server.knows(f"s{number}")]
    assert known == [*range(991, 1000)]
    with pytest.raises(SessionSupersededError, match=SUPERSEDED):
        server.join("ann", "s0", rejoin=True)
    server.store.pull("s999", server.now)


def test_who_wakes_up_after_hours_does_not_take_its_name_back(server: Server) -> None:
    """Another process has it, which joined when the old one was forgotten."""
    server.join("ann", "s0")
    server.now = HOUR_S + 1
    server.join("bob", "b")
    server.join("ann", "s1")

    with pytest.raises(SessionUnknownError):
        server.push("s0", 1, step_read=0)
    with pytest.raises(SessionSupersededError, match=SUPERSEDED):
        server.join("ann", "s0", rejoin=True)

    assert server.push("s1", 1, step_read=0).applied


@pytest.mark.parametrize("was_applied", [True, False])
def test_a_push_that_may_have_been_applied_before_is_not_applied(
    server: Server, was_applied: bool
) -> None:
    """It is refused as one of another history is: pull again, go on from there."""
    server.join("ann", "s0")
    server.push("s0", 1, step_read=0)
    if was_applied:
        server.push("s0", 2, step_read=1)
    server.now = HOUR_S + 1
    server.join("bob", "b")
    server.push("b", 1, step_read=0)
    step, before = 2 + was_applied, server.variables()
    with pytest.raises(SessionUnknownError):
        server.push("s0", 2, step_read=1)
    server.join("ann", "s0", rejoin=True)

    refused = (
        f"^step_read: expected {step} or more, the step when session s0 joined again, "
        "got 1; what it pushed before is not known any more$"
    )
    with pytest.raises(GenerationError, match=refused):
        server.push("s0", 2, step_read=1)

    assert server.variables() == before
    assert server.push("s0", 3, step).applied
    assert server.push("s0", 3, step).duplicate
    with pytest.raises(GenerationError, match=refused):
        server.push("s0", 4, step_read=1)
    (ann, _) = server.store.status(server.now).workers
    assert (ann.counts.applied, ann.counts.rejected) == (1, {"GENERATION": 2})


def test_who_joins_for_the_first_time_may_push_what_it_has_read_before(
    server: Server,
) -> None:
    """From an anonymous pull, say: nothing of it has ever been applied."""
    server.join("bob", "b")
    server.push("b", 1, step_read=0)
    server.join("ann", "s0")

    verdict = server.push("s0", 1, step_read=0)

    assert verdict == Verdict(applied=True, staleness=1, step=2)


# What an earlier start of the server knew


def test_a_session_that_was_known_before_the_start_still_is() -> None:
    """It keeps its name, in whatever order they are, from when it has called."""
    row = Session("ann", 5, Verdict(applied=True, staleness=0, step=9), since=3)
    sessions = Sessions({"s1": row, "s0": Session("ann", superseded=True)})

    entry = sessions.join("ann", "s1", rejoin_at=9)

    assert entry is Entry.AGAIN
    for other in ("s0", "older"):
        with pytest.raises(SessionSupersededError, match=rf"worker ann, got {other};"):
            sessions.join("ann", other, rejoin_at=9)
    assert sessions.get("s1") == row
    sessions.forget("ann")
    assert sessions.find("s0") is sessions.find("s1") is None


def test_a_session_that_joined_after_the_last_checkpoint_has_its_name_back() -> None:
    """The one before it is known from the checkpoint, but has not called since."""
    sessions = Sessions({"s0": Session("ann")})

    entry = sessions.join("ann", "s1", rejoin_at=9)

    assert entry is Entry.TAKEOVER
    assert sessions.get("s0").superseded
    assert sessions.get("s1") == Session("ann", since=9)
    with pytest.raises(SessionSupersededError, match=SUPERSEDED):
        sessions.join("ann", "s0", rejoin_at=9)


@pytest.mark.parametrize(
    ("joined", "newest"),
    [
        ([("s0", False), ("s1", True)], "s1"),
        ([("s0", False), ("s1", False), ("s0", True)], "s0"),
    ],
    ids=[
        "of a session that an earlier start did not know",
        "of one that was forgotten",
    ],
)
def test_a_log_s_joinings_are_what_they_were(
    server: Server, joined: list[tuple[str, bool]], newest: str
) -> None:
    """Whoever reads them knows more than the server that wrote them did."""
    log = [Joined("ann", session, rejoin) for session, rejoin in joined]

    again = server.recovered(log)

    (other,) = {"s0", "s1"} - {newest}
    assert again.push(newest, 1, step_read=0).applied
    with pytest.raises(SessionSupersededError, match=f"worker ann, got {other};"):
        again.push(other, 1, step_read=0)


def test_a_joining_that_a_log_has_twice_makes_nobody_forget(server: Server) -> None:
    """A retry of what was applied between the two is known as one."""
    header = PushHeader("s0", 1, "g", 0, LAYOUT.nbytes)
    applied = Applied(1, header, Body.gather(LAYOUT, UP))
    joined = Joined("ann", "s0")

    again = server.recovered([joined, applied, joined])

    assert again.push("s0", 1, step_read=0) == Verdict(True, 0, 1, duplicate=True)


def test_joinings_that_are_read_again_make_nobody_forget_the_newest(
    server: Server,
) -> None:
    """More of one worker than are remembered, who all are in the checkpoint."""
    sessions = [f"s{number}" for number in range(10)]
    for session in sessions:
        server.join("ann", session)
    first = server.push("s9", 1, step_read=0)

    again = server.recovered([Joined("ann", session) for session in sessions])

    assert again.push("s9", 1, step_read=0) == first.repeated()


def test_who_is_known_to_be_superseded_stays_so_whatever_the_log_has(
    server: Server,
) -> None:
    """The log has the joinings of a checkpoint's step too, but not the one after."""
    server.join("ann", "s0")
    server.join("ann", "s1")

    again = server.recovered([Joined("ann", "s0")])

    with pytest.raises(SessionSupersededError, match=SUPERSEDED):
        again.join("ann", "s0", rejoin=True)
    again.join("ann", "s1")
    assert again.push("s1", 1, step_read=0).applied
