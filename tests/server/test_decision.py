"""The decision on a push, as a pure function."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psserver import decision
from psserver.decision import Present, Session
from psserver.policies.groups import Groups
from psserver.policies.terms import Terms
from psserver.policies.weights import Inverse
from pswire.encoding import BFLOAT16, Encoding
from pswire.errors import (
    GenerationError,
    ParameterServerError,
    SequenceError,
    SessionSupersededError,
    StepReadError,
    VariableMismatchError,
)
from pswire.layout import ArraySpec, Layout
from pswire.values import PushHeader, Reason, Verdict

_F32 = np.dtype(np.float32)
_W, _B = ArraySpec("w", _F32, (2, 3)), ArraySpec("b", _F32, (5,))
_LAYOUT = Layout((_W, _B))
_NOW = Present(generation="g", step=100, layout=_LAYOUT)
_HEADER = PushHeader("s", 6, "g", 100, _LAYOUT.nbytes)
_SESSION = Session("ann", 5, Verdict(applied=True, staleness=0, step=90))
_STALE = Reason.STALE
_INT64 = st.integers(-(2**63), 2**63 - 1)


def decide(
    header: PushHeader, session: Session, present: Present, terms: Terms
) -> Verdict:
    """Decide as the store does, on what it has found amiss before."""
    amiss = decision.mismatch(header, present.layout)
    return decision.decide(header, session, present, terms, amiss)


def _push_of(*specs: ArraySpec, **changes: Any) -> PushHeader:
    layout = Layout(specs)
    return replace(_HEADER, layout=layout, nbytes=layout.nbytes, **changes)


def test_a_push_whose_snapshot_is_gone_is_dropped_for_that() -> None:
    """The oldest one is not gone yet; what is too stale as well is too stale."""
    now = replace(_NOW, oldest=96)

    reasons = [
        decide(replace(_HEADER, step_read=step), _SESSION, now, Terms(5)).reason
        for step in (94, 95, 96, 100)
    ]

    assert reasons == [_STALE, Reason.SNAPSHOT_GONE, None, None]


@pytest.mark.parametrize("limit", [0, 1, 8, 99])
def test_a_push_is_applied_up_to_the_limit_and_dropped_beyond(limit: int) -> None:
    """One step below, at and above it; only an applied push takes the step on."""
    ages = [age for age in (limit - 1, limit, limit + 1) if age >= 0]

    verdicts = [
        decide(replace(_HEADER, step_read=100 - age), _SESSION, _NOW, Terms(limit))
        for age in ages
    ]

    assert verdicts == [
        Verdict(applied=True, staleness=age, step=101)
        if age <= limit
        else Verdict(applied=False, staleness=age, step=100, reason=_STALE)
        for age in ages
    ]


def test_a_drop_is_told_with_those_before_it() -> None:
    """Until a push is applied; a retry gets what its push was told."""
    now = replace(_NOW, drops=4)

    dropped = decide(_HEADER, _SESSION, now, Terms(-1))
    applied = decide(_HEADER, _SESSION, now, Terms(0))
    session = replace(_SESSION, last_seq=_HEADER.seq, last_verdict=dropped)
    again = decide(_HEADER, session, replace(now, drops=5), Terms(-1))

    drops = [verdict.consecutive_drops for verdict in (dropped, applied, again)]
    assert drops == [5, 0, 5]


def test_the_factor_of_an_applied_push_is_the_policy_s() -> None:
    """Of the staleness that it is judged by."""
    header = replace(_HEADER, step_read=96)

    verdict = decide(header, _SESSION, _NOW, Terms(8, Inverse()))

    assert verdict == Verdict(applied=True, staleness=4, step=101, factor=0.25)


@given(step=st.integers(0, 2**63 - 1), step_read=_INT64, limit=st.none() | _INT64)
def test_a_push_is_applied_just_if_its_staleness_is_from_zero_to_the_limit(
    step: int, step_read: int, limit: int | None
) -> None:
    """A staleness below zero is an error, although it is below every limit."""
    header = replace(_HEADER, step_read=step_read)
    staleness = step - step_read
    applied = limit is None or staleness <= limit

    try:
        verdict = decide(header, _SESSION, replace(_NOW, step=step), Terms(limit))
    except StepReadError:
        assert not 0 <= step_read <= step
        return

    assert 0 <= step_read <= step
    assert verdict == Verdict(
        applied, staleness, step + applied, None if applied else _STALE
    )


_TOO_STALE = Verdict(applied=False, staleness=3, step=100, reason=_STALE)


@pytest.mark.parametrize(
    ("specs", "limits", "expected"),
    [
        ((_W, _B), {"b": 3}, Verdict(applied=True, staleness=3, step=101)),
        (
            (_W, _B),
            {"b": 2},
            Verdict(applied=True, staleness=3, step=101, dropped_variables=1),
        ),
        ((_W, _B), {"b": 2, "w": 2}, _TOO_STALE),
        ((_W, _B), {"*": 2}, _TOO_STALE),
        ((_B,), {"b": 2}, _TOO_STALE),
        ((_W,), {"b": 2}, Verdict(applied=True, staleness=3, step=101)),
    ],
    ids=["at the limit", "one", "both", "all", "only", "other"],
)
def test_a_push_is_applied_without_what_it_is_too_stale_for(
    specs: tuple[ArraySpec, ...], limits: dict[str, int], expected: Verdict
) -> None:
    """And dropped if that is all that it brings."""
    header = _push_of(*specs, step_read=97)
    groups = Groups(tuple(limits.items()))

    assert decide(header, _SESSION, _NOW, Terms(8, groups)) == expected
    # The limit is the one for all of them.
    assert decide(header, _SESSION, _NOW, Terms(2, groups)) == _TOO_STALE


@pytest.mark.parametrize("step_read", [-1, 101, 2**63 - 1, -(2**63)])
def test_a_step_that_never_was_is_an_error_even_without_a_limit(step_read: int) -> None:
    """From ahead it would look fresh, with a negative staleness."""
    header = replace(_HEADER, step_read=step_read)
    message = rf"^step_read: expected 0 to 100 steps, got {step_read}$"

    with pytest.raises(StepReadError, match=message):
        decide(header, _SESSION, _NOW, Terms(None))


@pytest.mark.parametrize(
    "first",
    [
        Verdict(applied=True, staleness=0, step=90),
        Verdict(applied=False, staleness=3, step=90, reason=_STALE),
    ],
    ids=["applied", "dropped"],
)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"step_read": 89},
        {"generation": "h"},
        {"step_read": 10**6},
        {"nbytes": 1},
        {"layout": Layout(())},
    ],
    ids=lambda change: "-".join(change) or "as-it-was",
)
def test_a_retry_repeats_the_first_verdict_before_anything_is_judged(
    first: Verdict, change: dict[str, Any]
) -> None:
    """At limit 0 an applied push is a step stale because of itself."""
    session = replace(_SESSION, last_seq=6, last_verdict=first)
    retry = replace(_HEADER, **{"step_read": 89, **change})

    verdict = decide(retry, session, _NOW, Terms(0))

    assert verdict == replace(first, duplicate=True)


@pytest.mark.parametrize(
    ("seq", "last_seq"), [(0, 0), (0, 5), (1, 5), (4, 5), (5, 2**64 - 1)]
)
def test_a_number_that_has_been_passed_is_refused(seq: int, last_seq: int) -> None:
    """Its verdict is forgotten, so it can be neither repeated nor judged again."""
    last = Verdict(applied=True, staleness=0, step=9) if last_seq else None
    session = Session("ann", last_seq, last)

    with pytest.raises(
        SequenceError, match=rf"^seq: expected more than {last_seq}, got {seq}$"
    ):
        decide(replace(_HEADER, seq=seq), session, _NOW, Terms(None))


@pytest.mark.parametrize("seq", [6, 7, 1000, 2**64 - 1])
def test_numbers_may_be_skipped(seq: int) -> None:
    """A session may have given up on a push, or had it rejected."""
    header = replace(_HEADER, seq=seq)

    verdict = decide(header, _SESSION, _NOW, Terms(0))

    assert verdict == Verdict(applied=True, staleness=0, step=101)


@pytest.mark.parametrize("step_read", [50, 51, 100])
def test_what_a_session_has_read_since_it_joined_again_is_judged(
    step_read: int,
) -> None:
    """By staleness alone: it cannot be what was applied before that."""
    header = replace(_HEADER, step_read=step_read)
    session = Session("ann", since=50)

    verdict = decide(header, session, _NOW, Terms(50))

    assert verdict == Verdict(applied=True, staleness=100 - step_read, step=101)


# What may be wrong with a push, in the order in which it is looked at: the error, its
# message, and the change of the header that brings it about.
_FAULTS: list[tuple[type[ParameterServerError], str, dict[str, Any]]] = [
    (
        SessionSupersededError,
        "session: expected the newest of worker ann, got s; "
        "another process has joined under that name",
        {},
    ),
    (SequenceError, "seq: expected more than 5, got 4", {"seq": 4}),
    (GenerationError, "generation: expected g, got h", {"generation": "h"}),
    (StepReadError, "step_read: expected 0 to 100 steps, got 101", {"step_read": 101}),
    (
        GenerationError,
        "step_read: expected 50 or more, the step when session s joined again, got 49; "
        "what it pushed before is not known any more",
        {"step_read": 49},
    ),
    (
        VariableMismatchError,
        "c: expected one of w, b, got (5,) float32 of another name",
        {"layout": Layout((_W, replace(_B, name="c")))},
    ),
    (
        VariableMismatchError,
        "counts: expected 2, one an array, got 3",
        {"encoding": Encoding(None, (1, 2, 3))},
    ),
    (VariableMismatchError, "nbytes: expected 84 bytes, got 83", {"nbytes": 83}),
]


@pytest.mark.parametrize("first", range(len(_FAULTS)))
def test_of_several_faults_the_first_in_the_order_is_told(first: int) -> None:
    """Every error comes before staleness: a push that is both bad and stale is bad."""
    error, message, _ = _FAULTS[first]
    session = replace(_SESSION, superseded=first == 0, since=50)
    # Where two faults are of one field, the first is the one that is told.
    changes = {
        k: v for *_, change in reversed(_FAULTS[first:]) for k, v in change.items()
    }

    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        decide(replace(_HEADER, **changes), session, _NOW, Terms(-1))


def test_a_superseded_session_is_not_even_told_its_last_verdict() -> None:
    """It has to stop, whatever became of its push."""
    session = replace(_SESSION, superseded=True)
    retry = replace(_HEADER, seq=session.last_seq)

    with pytest.raises(SessionSupersededError, match=r"^session: expected the newest"):
        decide(retry, session, _NOW, Terms(None))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (_push_of(), "layout: expected one or more of w, b, got none"),
        (
            _push_of(_W, replace(_B, name="c")),
            "c: expected one of w, b, got (5,) float32 of another name",
        ),
        (replace(_push_of(_B), nbytes=84), "nbytes: expected 20 bytes, got 84"),
        (
            _push_of(_W, _B, replace(_B, name="c")),
            "c: expected one of w, b, got (5,) float32 of another name",
        ),
        (
            _push_of(replace(_W, shape=(3, 2)), _B),
            "w: expected (2, 3) float32, got (3, 2) float32",
        ),
        (
            _push_of(_W, replace(_B, dtype=np.dtype(np.float64))),
            "b: expected (5,) float32, got (5,) float64",
        ),
        (
            _push_of(_W, replace(_B, shape=())),
            "b: expected (5,) float32, got () float32",
        ),
        (replace(_HEADER, nbytes=85), "nbytes: expected 84 bytes, got 85"),
        (replace(_HEADER, nbytes=0), "nbytes: expected 84 bytes, got 0"),
        (replace(_push_of(_B, _W), nbytes=84), "nbytes: expected 88 bytes, got 84"),
        (
            replace(_HEADER, encoding=Encoding(BFLOAT16)),
            "nbytes: expected 74 bytes, got 84",
        ),
        (
            replace(_HEADER, encoding=Encoding(None, (2, 5))),
            "nbytes: expected 148 bytes, got 84",
        ),
        (
            replace(_HEADER, encoding=Encoding(None, (7, 5))),
            "w: expected at most 6 elements, got 7",
        ),
        (
            replace(_push_of(_B, _W), encoding=Encoding(None, (6, 5))),
            "b: expected at most 5 elements, got 6",
        ),
    ],
)
def test_gradients_that_are_not_the_variables_are_refused_by_name(
    header: PushHeader, message: str
) -> None:
    """The name comes first, then what was expected, then what came."""
    policy = Terms(None)

    with pytest.raises(VariableMismatchError, match=f"^{re.escape(message)}$"):
        decide(header, _SESSION, _NOW, policy)


@pytest.mark.parametrize(
    "header",
    [
        *(_push_of(_W, _B), _push_of(_B, _W), _push_of(_W), _push_of(_B)),
        replace(_push_of(_B), encoding=Encoding(None, (2,)), nbytes=72),
    ],
)
def test_gradients_may_come_in_any_order_or_of_some_variables(
    header: PushHeader,
) -> None:
    """The body's size is that of what comes, in the order in which it does."""
    policy = Terms(0)

    verdict = decide(header, _SESSION, _NOW, policy)

    assert verdict == Verdict(applied=True, staleness=0, step=101)


@pytest.mark.parametrize(
    ("encoding", "nbytes"),
    [
        (Encoding(BFLOAT16), 74),
        (Encoding(None, (2, 5)), 148),
        (Encoding(BFLOAT16, (2, 5)), 138),
        (Encoding(None, (6, 5)), 84),
        (Encoding(None, (0, 0)), 0),
    ],
)
def test_the_size_of_a_push_is_what_travels(encoding: Encoding, nbytes: int) -> None:
    """Also of one that is dropped: what it would have brought is judged first."""
    header = replace(_HEADER, encoding=encoding, nbytes=nbytes)

    applied = decide(header, _SESSION, _NOW, Terms(0))
    dropped = decide(header, _SESSION, _NOW, Terms(-1))

    assert (applied.applied, dropped.applied) == (True, False)
