"""The policy: which staleness is too much."""

import math

import pytest

from psserver.staleness import DropStale, Judgement
from pswire.values import Reason

_LARGEST = 2**63 - 1


@pytest.mark.parametrize("limit", [1, 8, _LARGEST - 1])
def test_the_limit_itself_is_applied_and_the_next_staleness_is_not(limit: int) -> None:
    """One step below, at and above: the limit is inclusive, as in TensorFlow 1."""
    policy = DropStale(limit)

    judgements = [policy.judge(limit + more) for more in (-1, 0, 1)]

    assert judgements == [
        Judgement(apply=True),
        Judgement(apply=True),
        Judgement(apply=False, reason=Reason.STALE),
    ]


@pytest.mark.parametrize(
    ("limit", "applied"),
    [
        (None, [True, True, True]),
        (_LARGEST, [True, True, True]),
        (0, [True, False, False]),
        (-1, [False, False, False]),
        (-(2**63), [False, False, False]),
    ],
)
def test_limits_out_of_the_ordinary_mean_what_they_say(
    limit: int | None, applied: list[bool]
) -> None:
    """None keeps everything, zero only the current step's, a negative one nothing."""
    policy = DropStale(limit)

    judgements = [policy.judge(staleness) for staleness in (0, 1, _LARGEST)]

    assert [judgement.apply for judgement in judgements] == applied
    assert {j.reason for j in judgements if not j.apply} <= {Reason.STALE}


@pytest.mark.parametrize(
    "limit", [1.0, 2.5, math.nan, "4", True, 2**63, -(2**63) - 1, (1,)]
)
def test_a_limit_that_is_no_whole_number_is_refused(limit: object) -> None:
    """True is no number of steps either, and the wire carries 64 bits."""
    expected = r"^max_staleness: expected None or a whole number of steps of 64 bits, "

    with pytest.raises(ValueError, match=expected + "got "):
        DropStale(limit)  # type: ignore[arg-type]
