"""The policies: which staleness is too much, and what the rest still counts."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psserver.policies.adaptive import WINDOW, Adaptive
from psserver.policies.policy import Policy
from psserver.policies.terms import Terms, read_terms
from psserver.policies.weights import Exponential, Hinge, Inverse, Polynomial

_LARGEST = 2**63 - 1


@pytest.mark.parametrize("limit", [1, 8, _LARGEST - 1])
def test_the_limit_itself_is_applied_and_the_next_staleness_is_not(limit: int) -> None:
    """One step below, at and above: the limit is inclusive, as in TensorFlow 1."""
    judged = Terms(limit)

    assert [judged.factor(limit + more, ()) for more in (-1, 0, 1)] == [1.0, 1.0, None]


@pytest.mark.parametrize(
    ("limit", "factors"),
    [
        (None, [1.0, 1.0, 1.0]),
        (_LARGEST, [1.0, 1.0, 1.0]),
        (0, [1.0, None, None]),
        (-1, [None, None, None]),
        (-(2**63), [None, None, None]),
    ],
)
def test_limits_out_of_the_ordinary_mean_what_they_say(
    limit: int | None, factors: list[float | None]
) -> None:
    """None keeps everything, zero only the current step's, a negative one nothing."""
    judged = Terms(limit)

    assert [judged.factor(staleness, ()) for staleness in (0, 1, _LARGEST)] == factors


@pytest.mark.parametrize(
    "limit", [1.0, 2.5, math.nan, "4", True, 2**63, -(2**63) - 1, (1,)]
)
def test_a_limit_that_is_no_whole_number_is_refused(limit: object) -> None:
    """True is no number of steps either, and the wire carries 64 bits."""
    expected = r"^max_staleness: expected None or a whole number of steps of 64 bits, "

    with pytest.raises(ValueError, match=expected + "got "):
        Terms(limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "factors"),
    [
        (Policy(), {0: 1.0, 1: 1.0, 1000: 1.0}),
        (Inverse(), {0: 1.0, 1: 1.0, 2: 0.5, 4: 0.25, 1000: 0.001}),
        (Polynomial(1.0), {0: 1.0, 1: 0.5, 3: 0.25, 9: 0.1}),
        (Polynomial(0.5), {0: 1.0, 3: 0.5, 8: 1 / 3, 99: 0.1}),
        (Polynomial(2.0), {0: 1.0, 1: 0.25, 4: 0.04}),
        (Hinge(1.0, 3.0), {0: 1.0, 3: 1.0, 4: 0.5, 6: 0.25, 12: 0.1}),
        (Hinge(10.0, 4.0), {4: 1.0, 5: 1 / 11, 8: 1 / 41}),
        (Hinge(0.5, 0.0), {0: 1.0, 2: 0.5, 6: 0.25}),
        (Exponential(math.log(2)), {0: 1.0, 1: 0.5, 2: 0.25, 10: 1 / 1024}),
        (Exponential(0.1), {0: 1.0, 10: 0.36787944117144233}),
        (Adaptive(0.5, 0, 4), {0: 1.0, 4: 1.0}),
    ],
    ids=lambda value: value.spec if isinstance(value, Policy) else "",
)
def test_a_factor_is_what_its_formula_gives_by_hand(
    policy: Policy, factors: dict[int, float]
) -> None:
    """A fresh push counts in full, whatever the policy."""
    judged = Terms(None, policy)

    found = {staleness: judged.factor(staleness, ()) for staleness in factors}

    assert found == pytest.approx(factors, rel=1e-15)


_WEIGHTS = st.one_of(
    st.just(Inverse()),
    st.builds(Polynomial, st.floats(1e-6, 1e6)),
    st.builds(Hinge, st.floats(1e-6, 1e300), st.floats(0, 1e6)),
    st.builds(Exponential, st.floats(1e-6, 1e300)),
)


@given(_WEIGHTS, st.integers(0, _LARGEST - 1))
def test_a_factor_never_grows_with_the_staleness(
    policy: Policy, staleness: int
) -> None:
    """It is 1 at most; only where a double cannot tell, it is 0."""
    now, later = policy.factor(staleness), policy.factor(staleness + 1)

    assert policy.factor(0) == 1.0
    assert 0.0 <= later <= now <= 1.0


@given(_WEIGHTS)
def test_a_policy_s_spec_makes_the_same_policy_again(policy: Policy) -> None:
    """To the last digit of its arguments."""
    assert read_terms(policy.spec).policy == policy


def test_a_policy_weighs_what_the_limit_admits() -> None:
    """The limit stays hard beside it: what is over it is dropped."""
    judged = read_terms("inverse", 4)

    assert [judged.factor(staleness, ()) for staleness in (4, 5)] == [0.25, None]


@pytest.mark.parametrize(
    ("recent", "limit"),
    [
        ([], 20),
        ([1] * 19, 20),
        ([1] * 20, 2),
        ([7] * 20, 7),
        ([50] * 100, 20),
        ([*range(20)], 17),
        ([*range(100)][::-1], 20),
        ([5] * 90 + [9] * 10, 5),
        ([5] * 89 + [9] * 11, 9),
    ],
    ids=["none", "few", "least", "between", "most", "20", "any order", "90", "89"],
)
def test_an_adaptive_limit_is_a_quantile_within_its_bounds(
    recent: Sequence[int], limit: int
) -> None:
    """Nine tenths of the pushes before are no staler; of few pushes nobody can tell."""
    policy = Adaptive(0.9, 2, 20)

    assert policy.limit(recent) == limit
    assert Terms(None, policy).limit_now(recent) == limit
    assert Terms(limit, policy).factor(limit, recent) == 1.0
    assert Terms(None, policy).factor(limit + 1, recent) is None
    assert Terms(1, policy).limit_now(recent) == 1


@pytest.mark.parametrize("percent", range(1, 101))
def test_every_percentage_of_a_full_window_is_exact(percent: int) -> None:
    """0.07 * 100 is more than 7 in floats, and 0.29 * 100 less than 29."""
    recent = range(1, WINDOW + 1)

    assert Adaptive(percent / 100, 0, WINDOW).limit(recent) == percent


def test_the_least_share_of_a_window_is_one_push() -> None:
    """However little was asked for."""
    assert Adaptive(1e-12, 0, WINDOW).limit(range(1, WINDOW + 1)) == 1


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("drop", Terms(8)),
        ("drop:4", Terms(4)),
        ("drop:-1", Terms(-1)),
        ("drop:off", Terms(None)),
        ("inverse", Terms(8, Inverse())),
        ("polynomial:0.5", Terms(8, Polynomial(0.5))),
        ("polynomial:5e-1", Terms(8, Polynomial(0.5))),
        ("hinge:10,4", Terms(8, Hinge(10.0, 4.0))),
        ("exponential:1", Terms(8, Exponential(1.0))),
        ("adaptive:0.9,2,16", Terms(8, Adaptive(0.9, 2, 16))),
    ],
)
def test_a_spec_is_read(spec: str, told: Terms) -> None:
    """Beside it the limit is 8, unless it says something else itself."""
    assert read_terms(spec) == told


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("drop:4", "drop"),
        ("inverse", "inverse"),
        ("polynomial:0.50", "polynomial:0.5"),
        ("hinge: 10 ,4.0", "hinge:10,4"),
        ("adaptive:1,02,16", "adaptive:1,2,16"),
    ],
)
def test_a_policy_is_told_the_same_however_it_was_asked_for(
    spec: str, canonical: str
) -> None:
    """The limit of `drop` is told as the limit."""
    assert read_terms(spec).policy.spec == canonical


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected one of drop, inverse, polynomial:a, hinge:a,b, .*, got ''"),
        (
            "dorp",
            "expected one of drop, .*, adaptive:quantile,least,most, .*, got 'dorp'",
        ),
        ("Inverse", "expected one of drop, inverse, .*, got 'Inverse'"),
        ("drop:", "expected a whole number of steps or off, got ''"),
        ("drop:2.5", "expected a whole number of steps or off, got '2.5'"),
        ("inverse:1", "inverse: expected inverse, got 1 arguments"),
        ("polynomial", "polynomial: expected polynomial:a, got 0 arguments"),
        ("hinge:1", "hinge: expected hinge:a,b, got 1 arguments"),
        ("polynomial:", "polynomial: a: expected a number, got ''"),
        ("polynomial:x", "polynomial: a: expected a number, got 'x'"),
        ("polynomial:0", "polynomial: a: expected a finite number over 0, got 0.0"),
        ("polynomial:nan", "polynomial: a: expected a finite number over 0, got nan"),
        ("hinge:-1,0", "hinge: a: expected a finite number over 0, got -1.0"),
        ("hinge:1,-1", "hinge: b: expected 0 or more steps, got -1.0"),
        ("exponential:inf", "exponential: a: expected a finite number over 0, got inf"),
        ("adaptive:0,1,2", "adaptive: quantile: expected over 0 and .*, got 0.0"),
        ("adaptive:1.1,1,2", "adaptive: quantile: expected over 0 and .*, got 1.1"),
        ("adaptive:1,1.5,2", "adaptive: least: expected a whole number, got '1.5'"),
        ("adaptive:1,-1,2", "adaptive: least: expected 0 or more steps, got -1"),
        ("adaptive:1,3,2", "adaptive: most: expected 3 steps or more, .*, got 2"),
    ],
)
def test_a_spec_that_is_none_is_refused(spec: str, message: str) -> None:
    """The message names the policy, its argument, what it has to be and what came."""
    with pytest.raises(ValueError, match=f"^staleness_policy: {message}$"):
        read_terms(spec)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_staleness": "4"}, Terms(4, Inverse())),
        ({"max_staleness": "off"}, Terms(None, Inverse())),
        ({"staleness_policy": "drop"}, Terms(6)),
        ({"staleness_policy": "drop:2"}, Terms(2)),
        ({"staleness_policy": "drop:2", "max_staleness": "2"}, Terms(2)),
        (
            {"staleness_policy": "exponential:1", "max_staleness": "off"},
            Terms(None, Exponential(1.0)),
        ),
    ],
)
def test_what_is_not_named_stays(settings: dict[str, str], told: Terms) -> None:
    """Either may change without the other."""
    assert Terms(6, Inverse()).changed(settings) == told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "settings: expected some of max_staleness, staleness_policy, got none"),
        ({"limit": "4"}, "limit: expected one of max_staleness, staleness_policy"),
        ({"max_staleness": "many"}, "max_staleness: expected a whole number .*'many'"),
        ({"max_staleness": str(2**63)}, "max_staleness: expected None or .* 64 bits"),
        ({"staleness_policy": "no"}, "staleness_policy: expected one of drop, .*'no'"),
        (
            {"staleness_policy": "drop:2", "max_staleness": "3"},
            "staleness_policy: expected drop beside max_staleness, got 'drop:2', which",
        ),
    ],
)
def test_a_setting_that_is_none_is_refused(
    settings: dict[str, str], message: str
) -> None:
    """The message begins with its name."""
    with pytest.raises(ValueError, match=f"^{message}"):
        Terms(6).changed(settings)
