"""The counting of pushes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psserver.counters import Counters
from pswire.errors import (
    GenerationError,
    NonFiniteError,
    ParameterServerError,
    SessionUnknownError,
    reason,
)
from pswire.status import Counts
from pswire.values import Reason, Verdict

_APPLIED = Verdict(applied=True, staleness=0, step=1)
_DROPPED = Verdict(applied=False, staleness=3, step=1, reason=Reason.STALE)
_NAN = NonFiniteError("w: expected finite gradients, got nan")
_OUTCOMES: list[Verdict | ParameterServerError] = [
    _APPLIED,
    _DROPPED,
    _APPLIED.repeated(),
    _DROPPED.repeated(),
    _NAN,
    GenerationError("generation: expected g, got h"),
]

Outcome = Verdict | ParameterServerError


def _counters(*workers: str) -> Counters:
    counters = Counters()
    for worker in workers:
        counters.join(worker, now=0.0)
    return counters


def test_every_outcome_is_counted_as_what_it_is() -> None:
    """A retry is a duplicate, whatever its push had become."""
    counters = _counters("ann")

    for outcome in _OUTCOMES:
        counters.add("ann", outcome, now=0.0)

    assert counters.total.freeze() == Counts(
        applied=1,
        dropped=1,
        duplicate=2,
        rejected={"GENERATION": 1, "NON_FINITE": 1},
    )


@given(
    pushes=st.lists(
        st.tuples(st.sampled_from(["ann", "bob", None]), st.sampled_from(_OUTCOMES))
    )
)
def test_the_sums_reconcile(pushes: list[tuple[str | None, Outcome]]) -> None:
    """Rows add up to the totals less the pushes of sessions that never joined."""
    counters = _counters("bob", "ann")

    for worker, outcome in pushes:
        counters.add(worker, outcome, now=0.0)

    total = counters.total.freeze()
    rows = {row.name: row.counts for row in counters.workers(now=0.0)}
    strangers = [outcome for worker, outcome in pushes if worker is None]
    assert total.received == len(pushes)
    assert sum(counters.staleness.values()) == total.judged
    assert list(rows) == ["ann", "bob"]
    for name, counts in rows.items():
        assert counts.received == [worker for worker, _ in pushes].count(name)
    assert sum(c.received for c in rows.values()) + len(strangers) == total.received
    assert sum(c.dropped for c in rows.values()) + strangers.count(_DROPPED) == (
        total.dropped
    )
    assert total.rejected == Counter(
        reason(o) for _, o in pushes if isinstance(o, ParameterServerError)
    )


def test_drops_in_a_row_end_with_an_applied_push() -> None:
    """Retries and rejected pushes neither end the run nor lengthen it."""
    counters = _counters("ann", "bob")
    runs = []

    for outcome in (_DROPPED, _DROPPED, _DROPPED.repeated(), _NAN, _DROPPED, _APPLIED):
        counters.add("ann", outcome, now=0.0)
        counters.add("bob", _APPLIED, now=0.0)
        runs.append([row.consecutive_drops for row in counters.workers(now=0.0)])

    assert runs == [[1, 0], [2, 0], [2, 0], [2, 0], [3, 0], [0, 0]]


def test_the_staleness_of_every_judged_push_is_counted_once() -> None:
    """Dropped ones too, which is what tells how the limit should be set."""
    counters = _counters("ann")

    for outcome in (_DROPPED, _DROPPED, _DROPPED.repeated(), _APPLIED, _NAN):
        counters.add("ann", outcome, now=0.0)

    assert counters.staleness == {3: 2, 0: 1}


@pytest.mark.parametrize(
    ("now", "uptime_s", "rate"),
    [
        (100.0, 0.0, 6.0),
        (100.5, 0.5, 6.0),
        (104.0, 4.0, 1.5),
        (109.0, 9.0, 6 / 9),
        (110.0, 1000.0, 4 / 9),
        (111.5, 11.5, 2 / 9.5),
        (113.0, 13.0, 0.0),
        (1e6, 1e6, 0.0),
    ],
)
def test_the_rate_is_of_the_last_ten_seconds(
    now: float, uptime_s: float, rate: float
) -> None:
    """Or of the time since the start, if that is less, but of a second at least.

    Counted by whole seconds, they are the last nine to ten.
    """
    counters = _counters("ann")
    for second in (100.0, 100.9, 101.5, 101.5, 102.0, 102.999):
        counters.add("ann", _APPLIED, now=second)
        counters.add("ann", _APPLIED.repeated(), now=second)
        counters.add("ann", _NAN, now=second)

    got = counters.pushes_per_s(now, uptime_s)

    assert got == pytest.approx(rate)


@pytest.mark.parametrize("now", [120.0, 120.25, 120.5, 120.9])
def test_a_steady_rate_is_told_as_it_is(now: float) -> None:
    """Wherever in a second it is asked for."""
    counters = _counters("ann")
    for twentieth in range(int((now - 100) * 20)):
        counters.add("ann", _APPLIED, now=100 + twentieth / 20)

    got = counters.pushes_per_s(now, uptime_s=50.0)

    assert got == pytest.approx(20.0)


def test_the_rate_forgets_as_it_counts() -> None:
    """A push an hour later is the only one of its ten seconds."""
    counters = _counters("ann")
    for second in range(60):
        counters.add("ann", _DROPPED, now=float(second))

    counters.add("ann", _DROPPED, now=3600.0)

    assert counters.pushes_per_s(3600.0, 3600.0) == pytest.approx(1 / 9)


def test_a_worker_was_last_seen_when_it_last_called() -> None:
    """A call that came in between two readings of the clock is no time ago."""
    counters = _counters("ann", "bob")

    counters.see("ann", now=5.0)
    counters.join("bob", now=7.5)

    ages = [[row.last_seen_s for row in counters.workers(now)] for now in (7.0, 8.0)]
    assert ages == [[2.0, 0.0], [3.0, 0.5]]


def test_a_worker_that_joins_again_keeps_its_counts() -> None:
    """A new process under the name goes on in the same row."""
    counters = _counters("ann")
    counters.add("ann", _DROPPED, now=1.0)

    counters.join("ann", now=9.0)

    (row,) = counters.workers(now=9.0)
    assert (row.counts.dropped, row.consecutive_drops, row.last_seen_s) == (1, 1, 0.0)


def test_a_stranger_has_no_row() -> None:
    """Its rejected pushes are in the totals alone."""
    counters = _counters()

    counters.add(None, SessionUnknownError("session: expected one that"), now=0.0)

    assert counters.workers(now=0.0) == ()
    assert counters.total.freeze().rejected == {"SESSION_UNKNOWN": 1}
