"""Whose turn to pull it is, and what is remembered to tell."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optax
import pytest

from psserver.keeper import KeepNothing
from psserver.pacing import Turn
from psserver.policies.pull import Pull
from psserver.policies.ssp import Ssp
from psserver.policies.terms import read_terms
from psserver.store import Store
from pswire.errors import (
    InvalidRequestError,
    ServerUnavailableError,
    SessionSupersededError,
)
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader, Verdict

GRADIENT = {"w": np.zeros(2, np.float32)}
LAYOUT = Layout.of(GRADIENT)
NOT_PACED = Turn()
TIMEOUT_S = 30.0


class FullDisk(KeepNothing):
    """Keeps nothing once it has been told so."""

    keeps_changes = True

    def __init__(self) -> None:
        self.is_full = False

    def keep(self, changes: Any) -> None:
        if self.is_full:
            raise OSError("no space left")


@dataclass
class Paced:
    """A store, its time, and sessions named as their workers; each pushes what it has.

    Attributes:
        steps: {session: the step that it has pulled}.
    """

    store: Store
    now: float = 100.0
    steps: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def join(self, *workers: str) -> None:
        for worker in workers:
            self.store.join(worker, worker, self.now)

    def pull(self, session: str) -> str:
        """Return whom a pull waits for; empty: it is granted."""
        _, snapshot, turn = self.store.pull_in_turn(session, self.now)
        assert bool(turn.wait_s) == bool(turn.waits_for)
        if not turn.wait_s:
            self.steps[session] = snapshot.step
        return turn.waits_for

    def push(self, session: str, *, again: bool = False) -> Verdict:
        number = self.numbers.get(session, 0) + (not again)
        self.numbers[session] = number
        header = PushHeader(session, number, "g", self.steps[session], LAYOUT.nbytes)
        return self.store.push(header, lambda _: GRADIENT, self.now)

    def cycle(self, *sessions: str) -> None:
        """Have each pull and push, one after another."""
        for session in sessions:
            assert self.pull(session) == ""
            self.push(session)

    def waiting(self) -> list[str]:
        status = self.store.status(self.now)
        return [worker.name for worker in status.workers if worker.waiting]


def start(policy: str, limit: int | None, keeper: KeepNothing | None = None) -> Paced:
    """Make a store with variables, and the workers ann, bob and cleo."""
    store = Store(
        optax.sgd(1.0),
        rule_name="sgd",
        limits=Limits(limit, None, 2**20, 2**20, policy),
        generation="g",
        incarnation="i",
        now=0.0,
        keeper=keeper,
    )
    paced = Paced(store)
    paced.join("ann", "bob", "cleo")
    store.initialize("ann", LAYOUT, lambda _: GRADIENT, paced.now)
    return paced


@pytest.mark.parametrize(
    ("s", "clocks", "waits_for"),
    [
        (0, {"a": 3}, None),
        (0, {"a": 3, "b": 3}, None),
        (0, {"a": 4, "b": 3}, "b"),
        (2, {"a": 5, "b": 3, "c": 9}, None),
        (2, {"a": 6, "b": 3, "c": 4}, "b"),
        (2, {"a": 0, "b": 9}, None),
    ],
)
def test_ssp_grants_as_its_formula_says_by_hand(
    s: int, clocks: dict[str, int], waits_for: str | None
) -> None:
    """Just s ahead of the slowest is not too much."""
    assert Ssp(s).waits_for(Pull("a", 0, None, clocks, {})) == waits_for


@pytest.mark.parametrize(
    ("spec", "limit", "message"),
    [
        ("ssp:-1", 8, r"^staleness_policy: ssp: s: expected 0 or more pushes, got -1"),
        ("ssp:1.5", 8, r"^staleness_policy: ssp: s: expected a whole number, got '1.5"),
        ("ssp", 8, r"^staleness_policy: ssp: expected ssp:s, got 0 arguments"),
        ("admission:4", 8, r"^staleness_policy: admission: expected admission, got 1"),
        ("admission", None, r"^max_staleness: .* beside admission, got off"),
        ("admission", -1, r"^max_staleness: .* beside admission, got -1"),
    ],
)
def test_a_policy_that_cannot_pace_is_refused(
    spec: str, limit: int | None, message: str
) -> None:
    """At the start, by the name of the setting."""
    with pytest.raises(ValueError, match=message):
        read_terms(spec, limit)


@pytest.mark.parametrize(
    "settings", [{"max_staleness": "off"}, {"max_staleness": "-1"}]
)
def test_the_limit_cannot_be_taken_from_under_admission(
    settings: dict[str, str],
) -> None:
    """Nothing changes then, and what is in flight is remembered."""
    paced = start("admission", 0)
    paced.pull("ann")

    with pytest.raises(InvalidRequestError, match=r"^max_staleness: expected 0 or mor"):
        paced.store.set(settings)

    assert paced.store.limits.max_staleness == 0
    assert paced.pull("bob") == "ann"


def test_who_is_ahead_waits_for_the_slowest() -> None:
    """A dropped push counts for its clock too, a retry does not."""
    paced = start("ssp:1", limit=0)
    for worker in ("ann", "bob"):
        assert paced.pull(worker) == ""

    paced.push("ann")
    paced.push("ann", again=True)
    assert paced.pull("ann") == ""
    paced.push("ann")

    assert paced.pull("ann") == "bob"
    assert not paced.push("bob").applied
    assert paced.pull("ann") == ""


def test_who_joins_begins_at_the_clock_of_the_slowest() -> None:
    """It neither holds the others up nor has to wait until they have caught up."""
    paced = start("ssp:1", limit=None)
    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", ""]
    for worker in ("ann", "bob", "ann"):
        paced.push(worker)

    paced.cycle("cleo", "cleo")

    assert paced.pull("cleo") == "bob"
    assert paced.pull("ann") == ""
    paced.push("bob")
    assert paced.pull("cleo") == ""


def test_nobody_waits_for_who_is_silent_and_who_comes_back_has_caught_up() -> None:
    """A minute without a call is what the status calls silent."""
    paced = start("ssp:0", limit=None)
    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", ""]
    paced.push("ann")

    paced.now += 60.0
    assert paced.pull("ann") == "bob"
    paced.now += 0.5
    paced.cycle("ann", "ann")

    assert paced.pull("bob") == ""
    assert paced.pull("ann") == ""
    paced.push("bob")
    assert paced.pull("bob") == "ann"


@pytest.mark.parametrize("policy", ["ssp:0", "admission"])
def test_nobody_waits_for_a_session_that_is_superseded(policy: str) -> None:
    """The new one begins where the slowest is, with nothing in flight."""
    paced = start(policy, limit=0)
    assert paced.pull("ann") == ""
    if policy == "ssp:0":
        assert paced.pull("bob") == ""
        paced.push("bob")
    assert paced.pull("bob") == "ann"

    paced.store.join("ann", "ann2", paced.now)

    assert paced.pull("bob") == ""
    with pytest.raises(SessionSupersededError):
        paced.pull("ann")


@pytest.mark.parametrize("policy", ["ssp:0", "admission"])
def test_nobody_waits_for_who_has_left(policy: str) -> None:
    """It may come back all the same, as if it were new."""
    paced = start(policy, limit=0)
    assert paced.pull("ann") == ""
    if policy == "ssp:0":
        assert paced.pull("bob") == ""
        paced.push("bob")
    assert paced.pull("bob") == "ann"

    paced.store.leave("ann", paced.now)

    assert paced.pull("bob") == ""
    assert paced.pull("ann") == ("" if policy == "ssp:0" else "bob")


def test_admission_lets_as_many_begin_as_can_end_in_time() -> None:
    """With a limit of 1 that is two; who waits comes first when one has pushed."""
    paced = start("admission", limit=1)

    assert [paced.pull(worker) for worker in ("ann", "bob", "cleo")] == ["", "", "ann"]
    assert paced.waiting() == ["cleo"]
    assert paced.push("bob").applied

    assert paced.pull("bob") == "ann"
    assert paced.pull("cleo") == "ann"
    assert (paced.push("ann").staleness, paced.waiting()) == (1, ["bob", "cleo"])
    assert paced.pull("ann") == "cleo"
    assert [paced.pull(worker) for worker in ("bob", "cleo", "ann")] == ["", "", "bob"]


def test_who_waits_but_asks_no_more_is_not_waited_for() -> None:
    """It has a second more than it was told; its place is free then."""
    paced = start("admission", limit=0)
    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", "ann"]
    paced.push("ann")

    assert paced.pull("cleo") == "bob"
    paced.now += 0.9
    assert paced.pull("cleo") == "bob"
    paced.now += 0.2

    assert paced.waiting() == ["cleo"]
    assert paced.pull("cleo") == ""


def test_a_second_pull_takes_the_place_of_the_first() -> None:
    """What was pulled before is not going to be pushed, so nobody waits for it."""
    paced = start("admission", limit=1)
    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", ""]
    paced.push("bob")
    assert paced.pull("bob") == "ann"

    assert paced.pull("ann") == ""

    assert paced.pull("bob") == ""


def test_a_retry_leaves_what_was_pulled_since_in_flight() -> None:
    """Else another could begin, and one of the two were dropped."""
    paced = start("admission", limit=0)
    paced.cycle("ann")
    assert paced.pull("ann") == ""

    assert paced.push("ann", again=True).duplicate

    assert paced.pull("bob") == "ann"


def test_what_could_not_be_kept_is_in_flight_again() -> None:
    """It is pushed again, from the step that it has read."""
    disk = FullDisk()
    paced = start("admission", limit=0, keeper=disk)
    assert paced.pull("ann") == ""

    disk.is_full = True
    with pytest.raises(ServerUnavailableError, match="no space left"):
        paced.push("ann")

    assert paced.pull("bob") == "ann"
    disk.is_full = False
    paced.store.lineage.resume()
    assert paced.push("ann", again=True).applied
    assert paced.pull("bob") == ""


def test_who_never_joined_does_not_wait() -> None:
    """Nor does anybody wait for such a reader."""
    paced = start("admission", limit=0)
    assert paced.store.pull_in_turn("", paced.now)[2] == NOT_PACED

    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", "ann"]

    assert paced.store.pull_in_turn("", paced.now)[2] == NOT_PACED


def test_a_change_from_pacing_and_back_forgets_what_is_in_flight() -> None:
    """What was pulled meanwhile is not known either."""
    paced = start("admission", limit=0)
    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", "ann"]

    paced.store.set({"staleness_policy": "drop"})
    free = [paced.pull("bob"), *paced.waiting()]
    paced.store.set({"staleness_policy": "admission"})

    assert free == [""]
    assert [paced.pull(worker) for worker in ("cleo", "bob")] == ["", "cleo"]


def test_a_change_of_a_policy_that_paces_forgets_nothing() -> None:
    """Clocks go on, whatever s is."""
    paced = start("ssp:3", limit=None)
    assert [paced.pull(worker) for worker in ("ann", "bob")] == ["", ""]
    paced.push("ann")
    paced.cycle("ann")

    paced.store.set({"staleness_policy": "ssp:1"})

    assert paced.pull("ann") == "bob"


def test_waits_are_short_at_first_and_grow_with_what_they_have_taken() -> None:
    """From a millisecond to a second: an eighth of the time that the other took."""
    paced = start("admission", limit=0)
    paced.pull("ann")
    told = []

    for passed_s in (0.0, 0.08, 1.0, 20.0):
        paced.now = 100.0 + passed_s
        told.append(paced.store.pull_in_turn("bob", paced.now)[2].wait_s)

    assert told == pytest.approx([0.001, 0.01, 0.125, 1.0])


def test_what_workers_have_waited_adds_up() -> None:
    """Of one that has given up, no longer than it was expected to ask again."""
    paced = start("admission", limit=0)
    paced.pull("ann")
    assert paced.pull("bob") == "ann"
    for _ in range(4):
        paced.now += 0.5
        assert paced.pull("bob") == "ann"
    paced.push("ann")
    paced.now += 0.25
    assert paced.pull("bob") == ""
    paced.now += 0.5
    assert paced.pull("cleo") == "bob"
    paced.now += 50.0
    paced.pull("cleo")

    status = paced.store.status(paced.now)

    waited = {worker.name: worker.waited_s for worker in status.workers}
    assert waited == pytest.approx({"ann": 0, "bob": 2.25, "cleo": 1.0625})
    assert status.waited_s == pytest.approx(sum(waited.values()))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Keep a thread beside the test's own."""
    with ThreadPoolExecutor(1, "test") as pool:
        yield pool


@pytest.mark.parametrize(("policy", "takes_it"), [("drop", False), ("ssp:9", True)])
def test_a_pull_takes_the_lock_only_where_it_is_paced(
    policy: str, takes_it: bool, pool: ThreadPoolExecutor
) -> None:
    """Elsewhere it waits for nothing, not even for who applies a push."""
    paced = start(policy, limit=8)
    pulled = threading.Event()

    def pull() -> None:
        paced.pull("ann")
        pulled.set()

    with paced.store._lock:
        pulling = pool.submit(pull)
        came = pulled.wait(0.2 if takes_it else TIMEOUT_S)
    pulling.result(TIMEOUT_S)

    assert came is not takes_it
