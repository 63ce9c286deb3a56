"""The counting of pushes."""

import math
from collections import Counter
from dataclasses import replace
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psserver.counters import Counters
from pswire.counts import STALENESS_BOUNDS, Counts
from pswire.errors import (
    GenerationError,
    NonFiniteError,
    ParameterServerError,
    SessionUnknownError,
    reason,
)
from pswire.values import Reason, Verdict

_APPLIED = Verdict(applied=True, staleness=0, step=1)
_DROPPED = Verdict(applied=False, staleness=3, step=1, reason=Reason.STALE)
_GONE = replace(_DROPPED, reason=Reason.SNAPSHOT_GONE)
_NAN = NonFiniteError("w: expected finite gradients, got nan")
_OUTCOMES: list[Verdict | ParameterServerError] = [
    _APPLIED,
    _DROPPED,
    _GONE,
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


def _add(
    counters: Counters,
    worker: str | None,
    outcome: Outcome,
    now: float = 0.0,
    value: float | None = None,
) -> None:
    if isinstance(outcome, ParameterServerError):
        counters.reject(worker, outcome)
    elif worker is not None:
        counters.judge(worker, outcome, value, now)


def test_every_outcome_is_counted_as_what_it_is() -> None:
    """A retry is a duplicate, whatever its push had become."""
    counters = _counters("ann")

    for outcome in _OUTCOMES:
        _add(counters, "ann", outcome, now=0.0)

    assert counters.total.freeze() == Counts(
        applied=1,
        dropped=2,
        duplicate=2,
        rejected={"GENERATION": 1, "NON_FINITE": 1},
        snapshot_gone=1,
    )


@given(
    pushes=st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from(_OUTCOMES))
        | st.tuples(st.none(), st.sampled_from(_OUTCOMES[-2:]))
    )
)
def test_the_sums_reconcile(pushes: list[tuple[str | None, Outcome]]) -> None:
    """Rows and strangers add up to the totals, outcome by outcome."""
    counters = _counters("bob", "ann")

    for worker, outcome in pushes:
        _add(counters, worker, outcome)

    total = counters.total.freeze()
    rows = counters.workers(now=0.0, uptime_s=1.0)
    parts = [counters.unjoined.freeze(), *(row.counts for row in rows)]
    assert total.received == len(pushes)
    assert sum(counters.staleness.values()) == total.judged
    assert [row.name for row in rows] == ["ann", "bob"]
    for name, part in zip([None, "ann", "bob"], parts, strict=True):
        assert part.received == [worker for worker, _ in pushes].count(name)
    for of in map(attrgetter, ("applied", "dropped", "duplicate")):
        assert sum(map(of, parts)) == of(total)
    assert sum((Counter(part.rejected) for part in parts), Counter()) == total.rejected
    assert total.rejected == Counter(
        reason(o) for _, o in pushes if isinstance(o, ParameterServerError)
    )
    for row in rows:
        assert sum(row.staleness_buckets) == row.counts.judged


@pytest.mark.parametrize(
    ("staleness", "bucket"),
    [(0, 0), (4, 4), (5, 5), (6, 5), (7, 6), (128, 14), (129, 15), (10**9, 15)],
)
def test_a_worker_s_staleness_is_told_in_buckets(staleness: int, bucket: int) -> None:
    """The bounds belong to their buckets; the last one has the rest."""
    counters = _counters("ann")

    _add(counters, "ann", Verdict(applied=True, staleness=staleness, step=1))
    _add(counters, "ann", Verdict(True, staleness, 1, duplicate=True))

    (row,) = counters.workers(now=0.0, uptime_s=1.0)
    assert [n for n, pushes in enumerate(row.staleness_buckets) if pushes] == [bucket]
    assert len(row.staleness_buckets) == len(STALENESS_BOUNDS) + 1
    assert sum(row.staleness_buckets) == 1
    assert row.staleness_sum == row.mean_staleness == staleness


@pytest.mark.parametrize(
    ("values", "recent", "last"),
    [
        ([], None, None),
        ([None], None, None),
        ([1.0, 2.0, 4.5], 2.5, 4.5),
        ([1.0, None, math.nan, math.inf, 3.0, None], 2.0, 3.0),
        ([1e308, 1e308], None, 1e308),
    ],
)
def test_losses_are_told_as_workers_told_them(
    values: list[float | None], recent: float | None, last: float | None
) -> None:
    """In all the mean of the newest, of a worker its last; what is none is left out.

    Of duplicates, the first push has been counted.
    """
    counters = _counters("ann")

    for value in values:
        _add(counters, "ann", _APPLIED, value=value)
    _add(counters, "ann", _APPLIED.repeated(), value=7.0)

    (row,) = counters.workers(now=0.0, uptime_s=1.0)
    assert row.loss == last
    assert counters.recent.rates(0.0, 1.0).loss == recent


@pytest.mark.parametrize(
    ("told", "loss"),
    [
        ([20, 20], 2.0),
        ([20, 19], (20 * 1 + 19 * 2) / 39),
        ([19, 1, 0], (19 * 1 + 2) / 20),
        ([30, 19, 1, 0], (19 * 2 + 3) / 20),
        ([5, *[0] * 9], 1.0),
        ([5, *[0] * 10], None),
    ],
)
def test_the_loss_is_that_of_the_newest_seconds_that_say_enough(
    told: list[int], loss: float | None
) -> None:
    """One that falls fast is not told ten seconds late."""
    counters = _counters("ann")
    for second, losses in enumerate(told):
        for _ in range(losses):
            _add(counters, "ann", _APPLIED, now=float(second), value=second + 1.0)

    rates = counters.recent.rates(now=len(told) - 1.0, uptime_s=60.0)

    assert rates.loss == (None if loss is None else pytest.approx(loss))


def test_the_drop_rate_of_the_last_ten_seconds_forgets_what_came_before() -> None:
    """The pushes' rate is of all judged ones; two of the applied made one step."""
    counters = _counters("ann")
    for second, outcome in (
        *((0.0, _DROPPED), (20.0, _APPLIED), (21.0, _DROPPED)),
        *((22.0, replace(_APPLIED, step=2)), (23.0, replace(_APPLIED, step=2))),
    ):
        _add(counters, "ann", outcome, now=second)

    rates = counters.recent.rates(now=25.0, uptime_s=25.0)

    assert rates.drop_rate == 0.25
    assert rates.pushes_per_s == pytest.approx(4 / 9)
    assert rates.steps_per_s == pytest.approx(2 / 9)
    assert counters.recent.rates(now=40.0, uptime_s=40.0).drop_rate is None


def test_drops_in_a_row_end_with_an_applied_push() -> None:
    """Retries and rejected pushes neither end the run nor lengthen it.

    The longest run is remembered.
    """
    counters = _counters("ann", "bob")
    runs = []

    for outcome in (_DROPPED, _DROPPED, _DROPPED.repeated(), _NAN, _DROPPED, _APPLIED):
        _add(counters, "ann", outcome, now=0.0)
        _add(counters, "bob", _APPLIED, now=0.0)
        runs.append(
            [row.consecutive_drops for row in counters.workers(now=0.0, uptime_s=1.0)]
        )

    assert runs == [[1, 0], [2, 0], [2, 0], [2, 0], [3, 0], [0, 0]]
    rows = counters.workers(now=0.0, uptime_s=1.0)
    assert [(row.longest_drops, row.recent_drops) for row in rows] == [(3, 3), (0, 0)]


def test_the_last_twenty_pushes_forget_those_before() -> None:
    """Duplicates and rejected ones are none of them."""
    counters = _counters("ann")
    for _ in range(30):
        _add(counters, "ann", _DROPPED)

    for outcome in (_APPLIED, _APPLIED.repeated(), _NAN, _APPLIED, _DROPPED):
        _add(counters, "ann", outcome)

    (row,) = counters.workers(now=0.0, uptime_s=1.0)
    assert row.recent_drops == 18


def test_the_staleness_of_every_judged_push_is_counted_once() -> None:
    """Dropped ones too, which is what tells how the limit should be set."""
    counters = _counters("ann")

    for outcome in (_DROPPED, _DROPPED, _DROPPED.repeated(), _APPLIED, _NAN):
        _add(counters, "ann", outcome, now=0.0)

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
        _add(counters, "ann", _APPLIED, now=second)
        _add(counters, "ann", _APPLIED.repeated(), now=second)
        _add(counters, "ann", _NAN, now=second)

    got = counters.recent.rates(now, uptime_s).pushes_per_s

    assert got == pytest.approx(rate)


@pytest.mark.parametrize("now", [120.0, 120.25, 120.5, 120.9])
def test_a_steady_rate_is_told_as_it_is(now: float) -> None:
    """Wherever in a second it is asked for."""
    counters = _counters("ann")
    for twentieth in range(int((now - 100) * 20)):
        _add(counters, "ann", _APPLIED, now=100 + twentieth / 20)

    got = counters.recent.rates(now, uptime_s=50.0).pushes_per_s

    assert got == pytest.approx(20.0)


def test_the_rate_forgets_as_it_counts() -> None:
    """A push an hour later is the only one of its ten seconds."""
    counters = _counters("ann")
    for second in range(60):
        _add(counters, "ann", _DROPPED, now=float(second))

    _add(counters, "ann", _DROPPED, now=3600.0)

    assert counters.recent.rates(3600.0, 3600.0).pushes_per_s == pytest.approx(1 / 9)


def test_a_worker_was_last_seen_when_it_last_called() -> None:
    """A call that came in between two readings of the clock is no time ago."""
    counters = _counters("ann", "bob")

    counters.see("ann", now=5.0)
    counters.join("bob", now=7.5)

    ages = [
        [row.last_seen_s for row in counters.workers(now, 1.0)] for now in (7.0, 8.0)
    ]
    assert ages == [[2.0, 0.0], [3.0, 0.5]]


def test_a_worker_that_joins_again_keeps_its_counts() -> None:
    """A new process under the name goes on in the same row."""
    counters = _counters("ann")
    _add(counters, "ann", _DROPPED, now=1.0)

    counters.join("ann", now=9.0)

    (row,) = counters.workers(now=9.0, uptime_s=1.0)
    assert (row.counts.dropped, row.consecutive_drops, row.last_seen_s) == (1, 1, 0.0)


def test_another_start_goes_on_with_the_counts_and_nothing_else() -> None:
    """What was judged lately was judged by another server; nobody has called this."""
    counters = _counters("ann", "bob")
    _add(counters, "ann", _APPLIED, now=500.0, value=0.5)
    _add(counters, "ann", _DROPPED, now=500.0)

    counters.go_on(started=500.0)
    counters.see("bob", now=501.0)

    ann, bob = counters.workers(now=502.0, uptime_s=2.0)
    recent = counters.recent.rates(now=502.0, uptime_s=2.0)
    assert ann.counts == counters.total.freeze() == Counts(1, 1)
    assert (ann.consecutive_drops, ann.loss) == (1, 0.5)
    assert ann.pushes_per_s == recent.pushes_per_s == 0
    assert (recent.drop_rate, recent.loss) == (None, None)
    assert (ann.last_seen_s, bob.last_seen_s) == (3.0, 1.0)


@pytest.mark.parametrize(("now", "names"), [(3600.0, ["ann"]), (3600.1, [])])
def test_who_has_not_called_for_an_hour_is_forgotten_but_for_the_counts(
    now: float, names: list[str]
) -> None:
    """Just an hour is not over it; whoever comes back is counted anew."""
    counters = _counters("ann", "bob")
    counters.see("bob", now=1.0)
    for outcome in _OUTCOMES:
        _add(counters, "ann", outcome)
        _add(counters, None, _NAN)
    total = counters.total.freeze()

    forgotten = counters.forget_silent(now)

    rows = [*counters.workers(now, uptime_s=1.0)]
    assert [row.name for row in rows] == [*names, "bob"]
    assert forgotten == [name for name in ("ann",) if name not in names]
    assert counters.total.freeze() == total
    parts = [counters.unjoined.freeze(), *(row.counts for row in rows)]
    for of in map(attrgetter, ("applied", "dropped", "duplicate", "received")):
        assert sum(map(of, parts)) == of(total)
    assert sum((Counter(part.rejected) for part in parts), Counter()) == total.rejected
    counters.join("ann", now)
    (ann, _) = counters.workers(now, uptime_s=1.0)
    assert ann.counts.received == (len(_OUTCOMES) if names else 0)


def test_a_stranger_has_no_row() -> None:
    """Its rejected pushes are in the totals and apart."""
    counters = _counters()

    _add(counters, None, SessionUnknownError("session: expected one that"), now=0.0)

    assert counters.workers(now=0.0, uptime_s=1.0) == ()
    assert counters.total.freeze().rejected == {"SESSION_UNKNOWN": 1}
    assert counters.unjoined.freeze() == counters.total.freeze()


@pytest.mark.parametrize(
    ("staleness", "told"),
    [
        (0, 0),
        (999, 999),
        (1000, 1000),
        (1009, 1000),
        (12_345, 12_300),
        (10**9 + 1, 10**9),
    ],
)
def test_a_great_staleness_is_kept_in_three_digits(staleness: int, told: int) -> None:
    """A worker that never pulls again does not fill the memory; the sum is exact."""
    counters = _counters("ann")

    _add(counters, "ann", Verdict(applied=True, staleness=staleness, step=1))

    assert counters.staleness == {told: 1}
    assert counters.staleness_sum == staleness


def test_a_copy_stays_as_it_is() -> None:
    """Whatever is counted afterwards."""
    counters = _counters("ann")
    _add(counters, "ann", _DROPPED, now=5.0, value=1.0)
    _add(counters, "ann", _NAN)
    _add(counters, None, _NAN)

    copy = counters.copy()

    def figures(of: Counters) -> tuple[object, ...]:
        rows = of.workers(now=5.0, uptime_s=5.0)
        rates = of.recent.rates(now=5.0, uptime_s=5.0)
        parts = (of.total.freeze(), of.unjoined.freeze(), of.staleness_sum)
        return (*parts, dict(of.staleness), rates, rows)

    before = figures(copy)
    assert before == figures(counters)
    counters.join("bob", now=5.0)
    for outcome in (_DROPPED, _APPLIED, _NAN):
        _add(counters, "ann", outcome, now=5.0, value=9.0)
        _add(counters, "bob", outcome, now=6.0, value=9.0)
    _add(counters, None, _NAN)
    counters.see("ann", now=6.0)
    assert figures(copy) == before
    assert figures(counters) != before
