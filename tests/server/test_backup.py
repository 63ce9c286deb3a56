"""The policy of backup workers: its mean, its SPEC, and the pushes that wait."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver import gathering
from psserver.policies.backup import Backup
from psserver.policies.mean import mean
from psserver.policies.terms import Terms, read_terms
from psserver.store import Store
from pswire.body import Body
from pswire.errors import (
    CallCancelledError,
    InvalidRequestError,
    NonFiniteError,
    ServerUnavailableError,
    SessionSupersededError,
    TooFewPushesError,
)
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader, Reason, Verdict

TIMEOUT_S = 30.0
LAYOUT = Layout.of({"b": np.zeros(1, np.float32), "w": np.zeros(2, np.float32)})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, float])
def test_a_mean_is_as_by_hand(dtype: npt.DTypeLike) -> None:
    """In the type of the gradients, whose own sum might not be."""
    arrays = [
        np.array([1.0, -0.0, largest, 0.25], dtype) for largest in (3e4, 6e4, 3e4, 6e4)
    ]
    arrays[0][3] = 0.75

    found = mean(arrays)

    assert found.dtype == np.dtype(dtype)
    large = np.asarray(4.5e4, dtype)
    assert found.tolist() == [1.0, -0.0, large, 0.375]
    assert np.signbit(found[1])


def test_a_mean_is_summed_in_the_order_of_arrival_in_float32() -> None:
    """A small one is lost beside a large one, unless that is gone before it comes."""
    large, small = np.float32(2**24), np.float32(1)

    def sums(*numbers: np.float32) -> float:
        return float(mean([np.array([number]) for number in numbers])[0])

    assert sums(large, small, -large, small) == 0.25
    assert sums(large, -large, small, small) == 0.5
    assert mean([np.array([large], np.float64), np.ones(1)])[0] == 2**23 + 0.5


def test_a_spec_is_read_and_told_again() -> None:
    """Beside it the limit is what it was; its own is 0."""
    terms = read_terms("backup:3", 4)

    assert terms == Terms(4, Backup(3))
    assert terms.policy.spec == "backup:3"
    assert terms.limit_now(()) == 0
    assert read_terms("backup:64", None).policy.pushes_a_step == 64
    assert read_terms("drop").policy.pushes_a_step == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("backup", "backup: expected backup:n, got 0 arguments"),
        ("backup:x", "backup: n: expected a whole number, got 'x'"),
        ("backup:0", "backup: n: expected 1 to 64 pushes, got 0"),
        ("backup:65", "backup: n: expected 1 to 64 pushes, got 65"),
    ],
)
def test_a_spec_that_is_none_is_refused(spec: str, message: str) -> None:
    """The message says what is amiss."""
    with pytest.raises(ValueError, match=f"^staleness_policy: {re.escape(message)}$"):
        read_terms(spec)


class Pushers:
    """Workers of one store, each of whose pushes has a thread."""

    def __init__(self, pool: ThreadPoolExecutor, policy: str, rule: Any = None) -> None:
        self.pool = pool
        self.store = Store(
            rule or optax.sgd(1.0),
            rule_name="test",
            limits=Limits(8, None, 2**20, 2**20, policy),
            generation="g",
            incarnation="i",
            now=0.0,
        )
        for name in "abcd":
            self.store.join(name, name, now=0.0)
        self.store.initialize("a", LAYOUT, Body.zeros, now=0.0)

    def push(
        self,
        session: str,
        number: float,
        is_wanted: Callable[[], bool] = lambda: True,
        **changes: Any,
    ) -> "Future[Verdict]":
        """Push a number for every element."""
        settings = {"seq": 1, "step_read": 0, "nbytes": LAYOUT.nbytes, **changes}
        header = PushHeader(session, generation="g", **settings)

        def receive(layout: Layout) -> Body:
            body = Body.zeros(layout)
            for name in layout.places:
                body[name][:] = number
            return body

        return self.pool.submit(self.store.push, header, receive, 0.0, is_wanted)

    def wait(self, session: str, number: float, **changes: Any) -> "Future[Verdict]":
        """Push, and return once that waits for others."""
        asked, waits = iter((False, True)), threading.Event()

        def is_wanted() -> bool:  # Asked before it waits, then again and again.
            if next(asked, True):
                waits.set()
            return True

        pushing = self.push(session, number, is_wanted, **changes)
        assert waits.wait(TIMEOUT_S)
        return pushing

    def seen(self) -> tuple[int, set[float]]:
        """Return the step, and the numbers that all variables consist of."""
        snapshot = self.store.pull("", now=0.0)[1]
        return snapshot.step, {float(n) for a in snapshot.params.values() for n in a}

    def rejected(self) -> dict[str, int]:
        return dict(self.store.status(0.0).counts.rejected)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Have threads that end with the test."""
    with ThreadPoolExecutor(8, "test") as pool:
        yield pool


def applied(step: int) -> Verdict:
    """Return what each of the pushes that make a step is told."""
    return Verdict(applied=True, staleness=0, step=step)


def test_the_first_few_make_a_step_together(pool: ThreadPoolExecutor) -> None:
    """Of their mean; nobody is told before, and who comes later is too stale."""
    pushers = Pushers(pool, "backup:3")

    waiting = [pushers.wait("a", 1), pushers.wait("b", 2)]
    before = pushers.seen(), pushers.store.status(0.0).counts.judged
    verdicts = [p.result(TIMEOUT_S) for p in (*waiting, pushers.push("c", 6))]
    late = pushers.push("d", 9).result(TIMEOUT_S)

    assert before == ((0, {0.0}), 0)
    assert verdicts == [applied(1)] * 3
    assert late == Verdict(False, 1, 1, Reason.STALE)
    assert pushers.seen() == (1, {-3.0})
    status = pushers.store.status(0.0)
    assert (status.counts.applied, status.counts.dropped) == (3, 1)
    assert status.steps_per_s == pytest.approx(status.pushes_per_s / 4)


def test_each_of_them_has_its_verdict_again(pool: ThreadPoolExecutor) -> None:
    """A retry of any is a duplicate, and of a later step nobody's."""
    pushers = Pushers(pool, "backup:2")
    first = [pushers.wait("a", 1), pushers.push("b", 3)]
    assert [push.result(TIMEOUT_S) for push in first] == [applied(1)] * 2

    again = [pushers.push("a", 1), pushers.push("b", 3)]

    assert [push.result(TIMEOUT_S) for push in again] == [applied(1).repeated()] * 2
    later = [pushers.wait("a", 1, seq=2, step_read=1)]
    later.append(pushers.push("b", 3, seq=2, step_read=1))
    assert [push.result(TIMEOUT_S) for push in later] == [applied(2)] * 2
    assert pushers.seen() == (2, {-4.0})


def test_another_attempt_takes_the_place_of_the_first(
    pool: ThreadPoolExecutor,
) -> None:
    """It never counts twice, and the first one's caller is told."""
    pushers = Pushers(pool, "backup:2")
    first = pushers.wait("a", 1)
    second = pushers.wait("a", 1)

    with pytest.raises(ServerUnavailableError, match=r"another attempt has come$"):
        first.result(TIMEOUT_S)
    before = pushers.seen()
    other = pushers.push("b", 3)

    assert before == (0, {0.0})
    assert second.result(TIMEOUT_S) == other.result(TIMEOUT_S) == applied(1)
    assert pushers.seen() == (1, {-2.0})


def test_too_few_are_told_how_many_are_missing(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they wait no more: whoever comes later does not count with them."""
    monkeypatch.setattr(gathering, "PATIENCE_S", 0.5)
    pushers = Pushers(pool, "backup:3")

    for session in "ab":
        with pytest.raises(TooFewPushesError) as failure:
            pushers.push(session, 1).result(TIMEOUT_S)

    told = "push: expected 3 for step 1, got 1 in 0.5 s: 2 are missing"
    assert str(failure.value) == told
    assert pushers.seen() == (0, {0.0})
    assert pushers.rejected() == {"TOO_FEW_PUSHES": 2}


def test_a_caller_that_goes_away_does_not_count(pool: ThreadPoolExecutor) -> None:
    """Whether it is noticed while it waits, or when the last one comes."""
    pushers = Pushers(pool, "backup:2")
    is_there = threading.Event()
    is_there.set()
    gone = pushers.push("a", 1, is_there.is_set)
    is_there.clear()

    with pytest.raises(CallCancelledError, match="the caller went away"):
        gone.result(TIMEOUT_S)
    waiting = pushers.wait("b", 3)

    assert pushers.seen() == (0, {0.0})
    assert pushers.push("a", 5).result(TIMEOUT_S) == applied(1)
    assert waiting.result(TIMEOUT_S) == applied(1)
    assert pushers.seen() == (1, {-4.0})


def test_a_session_that_is_taken_over_does_not_count(pool: ThreadPoolExecutor) -> None:
    """Its worker would count twice: this process and the one before."""
    pushers = Pushers(pool, "backup:2")
    old = pushers.wait("a", 1)
    pushers.store.join("a", "a2", now=0.0)

    new = pushers.wait("a2", 3)

    with pytest.raises(SessionSupersededError):
        old.result(TIMEOUT_S)
    assert pushers.push("b", 5).result(TIMEOUT_S) == applied(1)
    assert new.result(TIMEOUT_S) == applied(1)
    assert pushers.seen() == (1, {-4.0})


@pytest.mark.parametrize(
    "settings", [{"staleness_policy": "drop"}, {"max_staleness": "4"}]
)
def test_a_change_lets_nobody_wait(
    settings: dict[str, str], pool: ThreadPoolExecutor
) -> None:
    """They are told at once, and to come again: by then they are judged anew."""
    pushers = Pushers(pool, "backup:3")
    waiting = [pushers.wait("a", 1), pushers.wait("b", 1)]

    pushers.store.set(settings)

    for push in waiting:
        with pytest.raises(ServerUnavailableError, match="has just changed"):
            push.result(TIMEOUT_S)
    assert pushers.seen() == (0, {0.0})
    assert pushers.rejected() == {"SERVER_UNAVAILABLE": 2}


def test_a_push_that_came_before_the_policy_does_not_wait(
    pool: ThreadPoolExecutor,
) -> None:
    """Its body may lie in memory that is the worker's own again by then."""
    pushers = Pushers(pool, "drop")

    def change(layout: Layout) -> Body:
        pushers.store.set({"staleness_policy": "backup:2"})
        return Body.zeros(layout)

    header = PushHeader("a", 1, "g", 0, LAYOUT.nbytes)
    with pytest.raises(ServerUnavailableError, match="the policy has just changed"):
        pushers.store.push(header, change, 0.0)
    assert pushers.store.pushes_wait


def test_a_mean_that_overflows_is_an_error_for_each(pool: ThreadPoolExecutor) -> None:
    """Nothing has changed, and the next ones make the step."""
    pushers = Pushers(pool, "backup:2")
    pushes = [pushers.wait("a", 3e38), pushers.push("b", 3e38)]

    for push in pushes:
        with pytest.raises(NonFiniteError, match=r"^b: expected finite gradients"):
            push.result(TIMEOUT_S)

    assert pushers.seen() == (0, {0.0})
    pushes = [pushers.wait("a", 1), pushers.push("b", 3)]
    assert [push.result(TIMEOUT_S) for push in pushes] == [applied(1)] * 2
    assert pushers.seen() == (1, {-2.0})


def test_a_push_of_some_variables_is_refused(pool: ThreadPoolExecutor) -> None:
    """Whatever order all of them are in, they are all."""
    pushers = Pushers(pool, "backup:2")
    some, turned = LAYOUT.chosen(["w"]), LAYOUT.chosen(["w", "b"])

    message = "^layout: expected all 2 .* as backup:2 takes the mean .*, got 1$"
    with pytest.raises(InvalidRequestError, match=message):
        pushers.push("a", 1, layout=some, nbytes=some.nbytes).result(TIMEOUT_S)
    pushes = [pushers.wait("a", 1, layout=turned, nbytes=turned.nbytes)]
    pushes.append(pushers.push("b", 3))

    assert [push.result(TIMEOUT_S) for push in pushes] == [applied(1)] * 2
    assert pushers.seen() == (1, {-2.0})


def test_a_rule_that_needs_the_loss_has_the_mean_of_them(
    pool: ThreadPoolExecutor,
) -> None:
    """A push that tells none is refused alone."""

    def scale(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return optax.tree.scale(-value, updates), state

    rule = optax.GradientTransformationExtraArgs(lambda params: (), scale)
    pushers = Pushers(pool, "backup:2", rule)
    waiting = pushers.wait("a", 1, value=2.0)

    with pytest.raises(InvalidRequestError, match=r"^value: expected the loss"):
        pushers.push("b", 3).result(TIMEOUT_S)
    other = pushers.push("c", 3, value=5.0)

    assert waiting.result(TIMEOUT_S) == other.result(TIMEOUT_S) == applied(1)
    assert pushers.seen() == (1, {-7.0})
