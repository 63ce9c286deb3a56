"""A rule's slots, taken out of one server's state and put into another's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from psserver.checkpoint import Slots
from psserver.rules import CompiledRule, State, require_rule
from pswire.body import Body
from pswire.layout import Layout

VARIABLES = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(3, dtype=np.float32),  # Not a multiple of 64 bytes: a gap follows.
    "mask": np.arange(4, dtype=np.int32),
    "v": np.ones((), np.float32),
}
LAYOUT = Layout.of(VARIABLES)


def _compile(rule: Any) -> CompiledRule:
    return CompiledRule(require_rule(rule), LAYOUT)


def _step(rule: CompiledRule, state: State, number: int) -> State:
    gradients = {
        spec.name: np.full(spec.shape, np.sin(number), spec.dtype)
        for spec in LAYOUT.trainable
    }
    return rule.apply(state, Body.gather(LAYOUT.trainable, gradients), value=1.0)


def _bits(state: State) -> list[tuple[str, bytes]]:
    """Return the type of every leaf, and its bits; a random key's too."""
    return [
        (str(leaf.aval), np.asarray(jax.random.key_data(leaf)).tobytes())
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else (str(leaf.aval), np.asarray(leaf).tobytes())
        for leaf in jax.tree.leaves(state)
    ]


def _go_on(rule: Any, state: State, slots: Slots) -> tuple[CompiledRule, State]:
    """Start another server's rule from what one has left."""
    trained = Body(LAYOUT, list(_compile(rule).runs(state)))
    now = {spec.name: trained[spec.name] for spec in LAYOUT.trainable}
    whole = Body.gather(LAYOUT, {**VARIABLES, **now})
    fresh = _compile(rule)
    return fresh, fresh.start(whole.freeze(), slots)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_another_rule_goes_on_to_the_bit(
    rule: optax.GradientTransformation, steps: int
) -> None:
    """All slots, whatever their types: also those that the first update changes."""
    first = _compile(rule)
    state = first.start(Body.gather(LAYOUT, VARIABLES).freeze())
    for number in range(steps):
        state = _step(first, state, number)

    second, restored = _go_on(rule, state, first.slots(state))

    for number in range(steps, steps + 3):
        state, restored = _step(first, state, number), _step(second, restored, number)
        assert _bits(restored) == _bits(state)


def test_a_random_key_goes_on() -> None:
    """The noise that comes next is the noise that would have come."""
    rule = optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, jax.random.key(7)))
    first = _compile(rule)
    state = _step(first, first.start(Body.gather(LAYOUT, VARIABLES).freeze()), 0)

    second, restored = _go_on(rule, state, first.slots(state))

    assert _bits(_step(second, restored, 1)) == _bits(_step(first, state, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.pop("slots[0].mu['w']"),
            r"slots\[0\]\.mu\['w'\]: expected \(2, 3\) float32, got none",
        ),
        (
            lambda a: a.update({"slots[0].nu['b']": np.ones(4, np.float32)}),
            r"slots\[0\]\.nu\['b'\]: expected \(3,\) float32, got \(4,\) float32",
        ),
        (
            lambda a: a.update({"slots[0].count": np.ones((), np.float32)}),
            r"slots\[0\]\.count: expected \(\) int32, got \(\) float32",
        ),
        (
            lambda a: a.update({"slots[1].trace": np.ones(2)}),
            r"slots\[1\]\.trace: expected no such slot, got \(2,\) float64",
        ),
    ],
)
def test_slots_of_another_rule_are_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Adam's count, and two arrays for each variable."""
    rule = _compile(optax.adam(0.1))
    variables = Body.gather(LAYOUT, VARIABLES).freeze()
    slots = rule.slots(rule.start(variables))
    arrays = dict(slots.arrays)
    change(arrays)

    with pytest.raises(ValueError, match=message):
        _compile(optax.adam(0.1)).start(variables, replace(slots, arrays=arrays))
