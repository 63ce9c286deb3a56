"""Delay compensation's formula, by hand, and its SPEC."""

import re

import numpy as np
import pytest

from psserver.policies.compensation import (
    DelayCompensation,
    adapted,
    compensated,
    mean_square,
)
from psserver.policies.terms import Terms, read_terms


@pytest.mark.parametrize(
    ("gradient", "now", "read", "strength", "expected"),
    [
        (2.0, 1.5, 1.0, 0.5, 3.0),  # 2 + 0.5 * 4 * 0.5
        (-2.0, 1.5, 1.0, 0.5, -1.0),  # -2 + 0.5 * 4 * 0.5
        (2.0, 1.0, 1.5, 0.5, 1.0),
        (2.0, 1.0, 1.0, 0.5, 2.0),
        (0.0, 9.0, 1.0, 0.5, 0.0),
        (4.0, 1.0, 0.75, 0.25, 5.0),  # 4 + 0.25 * 16 * 0.25
    ],
)
def test_a_gradient_is_compensated_as_by_hand(
    gradient: float, now: float, read: float, strength: float, expected: float
) -> None:
    """The paper's g + lambda * g * g * (w_now - w_read)."""
    assert compensated(gradient, now, read, strength) == expected


def test_mean_squares_and_adapted_strengths_are_as_by_hand() -> None:
    """Each element has its own; before any gradient there is hardly a bound."""
    squares = mean_square(np.array([0.0, 4.0, 1.0]), np.array([2.0, 2.0, 0.0]))

    np.testing.assert_allclose(squares, [0.2, 4.0, 0.95], rtol=1e-15)
    found = adapted(2.0, np.array([0.0, 4.0 - 1e-7, 0.25 - 1e-7]))
    np.testing.assert_allclose(found, [2e3 * 10**0.5, 1.0, 4.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("spec", "policy", "canonical"),
    [
        (
            "delay-compensation:4e-2",
            DelayCompensation(0.04),
            "delay-compensation:0.04",
        ),
        (
            "delay-compensation:2.0,adaptive",
            DelayCompensation(2.0, adaptive=True),
            "delay-compensation:2,adaptive",
        ),
    ],
)
def test_a_spec_is_read_and_told_again(
    spec: str, policy: DelayCompensation, canonical: str
) -> None:
    """However it was asked for, it is told the same."""
    terms = read_terms(spec, 4)

    assert terms == Terms(4, policy)
    assert terms.policy.spec == canonical
    assert read_terms(canonical, 4) == terms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "lambda: expected a finite number over 0, got ''"),
        (":x", "lambda: expected a finite number over 0, got 'x'"),
        (":0", "lambda: expected a finite number over 0, got '0'"),
        (":-1", "lambda: expected a finite number over 0, got '-1'"),
        (":inf", "lambda: expected a finite number over 0, got 'inf'"),
        (":nan,adaptive", "lambda: expected a finite number over 0, got 'nan'"),
        (
            ":1,fixed",
            "expected delay-compensation:lambda[,adaptive], got '1,fixed'",
        ),
    ],
)
def test_a_spec_that_is_none_is_refused(arguments: str, message: str) -> None:
    """The message says the paper's name of what is amiss."""
    expected = re.escape(f"staleness_policy: delay-compensation: {message}")

    with pytest.raises(ValueError, match=f"^{expected}$"):
        read_terms(f"delay-compensation{arguments}")


def test_it_needs_a_hard_limit() -> None:
    """At a start and in a change: it keeps a snapshot for each step of the limit."""
    message = r"^max_staleness: expected .* delay-compensation, .* snapshots, got off$"
    spec = "delay-compensation:1"

    with pytest.raises(ValueError, match=message):
        read_terms(spec, None)
    with pytest.raises(ValueError, match=message):
        read_terms(spec, 4).changed({"max_staleness": "off"})
    with pytest.raises(ValueError, match=message):
        Terms(None).changed({"staleness_policy": spec})
    assert read_terms(spec).limit == 8
