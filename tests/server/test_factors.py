"""What a factor does: it scales the rule's update, which a gradient's scale need not.

An adaptive rule divides its gradients by their own size, so of Adam's a tenth as large
comes the same update; and a rule's slots are to learn of all gradients alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver.rules import CompiledRule, State, require_rule
from pswire.body import Arrays, Body
from pswire.layout import Layout

_FACTOR = 0.3
_RULES = {
    "sgd": optax.sgd(0.5),
    "momentum": optax.sgd(0.5, momentum=0.9),
    "adam": optax.adam(1.0),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1.0)),
}
_NARROW = (np.float16, ml_dtypes.bfloat16)
_CASES = [
    *((name, np.float32) for name in _RULES),
    *(("adam", dtype) for dtype in (*_NARROW, np.float64)),
]


def _numbers(seed: int, dtype: npt.DTypeLike = np.float32) -> Arrays:
    draw = np.random.default_rng(seed)
    return {
        "w": draw.normal(size=(2, 3)).astype(dtype),
        "b": draw.normal(size=4).astype(dtype),
    }


class _Running:
    """A rule that has run once, from which it can go on in many ways."""

    def __init__(self, rule: object, dtype: npt.DTypeLike = np.float32) -> None:
        variables = _numbers(0, dtype)
        self._layout = Layout.of(variables)
        self._rule = CompiledRule(require_rule(rule), self._layout)
        self._gradients = _numbers(1, dtype)
        begun = self._rule.start(self._body(variables))
        self._state = self._rule.apply(begun, self._body(self._gradients), None)

    def prepare(self) -> None:
        self._rule.prepare(self._state, weighed=True, some=False)

    def moves(self, factor: float, scale: float = 1.0) -> tuple[Arrays, list[bytes]]:
        """Return how far each variable moves then, and all bits of the slots.

        Args:
            factor: Of the update.
            scale: Of the gradients.
        """
        scaled = {k: (scale * v).astype(v.dtype) for k, v in self._gradients.items()}
        after = self._rule.apply(self._state, self._body(scaled), None, factor)
        before = self._arrays(self._state)
        moved = {
            name: np.asarray(array, np.float64) - np.asarray(before[name], np.float64)
            for name, array in self._arrays(after).items()
        }
        slots = self._rule.slots(after).arrays
        return moved, [np.asarray(slot).tobytes() for slot in slots.values()]

    def _body(self, arrays: Arrays) -> Body:
        return Body.gather(self._layout, arrays)

    def _arrays(self, state: State) -> Arrays:
        return dict(Body(self._layout, list(self._rule.runs(state))))


@pytest.mark.parametrize(("rule", "dtype"), _CASES)
def test_a_factor_scales_the_update_and_leaves_the_slots(
    rule: str, dtype: npt.DTypeLike
) -> None:
    """Of every type; the slots keep every bit that they have without it."""
    running = _Running(_RULES[rule], dtype)

    full, slots = running.moves(1.0)
    part, slots_then = running.moves(_FACTOR)

    # The variables are about 1, so that much of each move is rounded away.
    most = 4 * float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    for name, move in full.items():
        np.testing.assert_allclose(part[name], _FACTOR * move, rtol=0, atol=most)
        assert np.abs(move).max() > 8 * most
    assert slots_then == slots


def test_adam_is_slowed_by_a_factor_but_not_by_smaller_gradients() -> None:
    """What a policy that scaled gradients would do to Adam: hardly anything."""
    adam = optax.adam(0.1)
    variables = {"w": np.ones(3, np.float32)}
    rule = CompiledRule(require_rule(adam), layout := Layout.of(variables))
    start = rule.start(Body.gather(layout, variables))
    gradient = Body.gather(layout, {"w": np.full(3, 2.0, np.float32)})
    tenth = Body.gather(layout, {"w": np.full(3, 0.2, np.float32)})

    def after(gradients: Body, factor: float) -> list[float]:
        state = start
        for _ in range(5):
            state = rule.apply(state, gradients, None, factor)
        return list(Body(layout, list(rule.runs(state)))["w"])

    assert after(gradient, 1.0) == pytest.approx([0.5] * 3, rel=1e-5)
    assert after(tenth, 1.0) == pytest.approx([0.5] * 3, rel=1e-5)
    assert after(gradient, 0.1) == pytest.approx([0.95] * 3, rel=1e-5)


def test_a_factor_has_the_precision_of_the_variables() -> None:
    """Of float64 it is no float32, and of bfloat16 no bfloat16."""
    gradients = {"w": np.full(1, -1.0), "h": np.full(1, -1.0, ml_dtypes.bfloat16)}
    variables = {name: np.zeros_like(array) for name, array in gradients.items()}
    rule = CompiledRule(require_rule(optax.sgd(9.0)), layout := Layout.of(variables))
    state = rule.start(Body.gather(layout, variables))

    state = rule.apply(state, Body.gather(layout, gradients), None, 0.1)

    after = Body(layout, list(rule.runs(state)))
    assert after["w"] == 9.0 * 0.1
    # A tenth of bfloat16's own, which is 0.1001, would make it 0.90234.
    assert after["h"] == ml_dtypes.bfloat16(0.8984375)


def test_once_prepared_a_factor_compiles_nothing() -> None:
    """JAX calls the rule just when it compiles; a factor is a number like another."""
    calls, rule = 0, _RULES["momentum"]

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        nonlocal calls
        calls += 1
        return rule.update(updates, state, params)

    running = _Running(optax.GradientTransformation(rule.init, update))
    started_with = calls

    running.prepare()
    running.prepare()
    prepared_with = calls
    for factor in (1.0, 0.5, 0.25, 0.0):
        running.moves(factor)

    assert calls == prepared_with > started_with


def test_a_factor_of_nothing_moves_nothing() -> None:
    """What is so stale that no float32 can tell its factor from 0 is like that too."""
    running = _Running(_RULES["adam"])

    for factor in (0.0, 1e-300):
        moved, _ = running.moves(factor)

        assert not any(jax.tree.leaves(jax.tree.map(np.any, moved)))
