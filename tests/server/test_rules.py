"""A compiled rule does what optax does, and nothing where it fails."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver.rules import CompiledRule, State, require_rule
from psserver.rulespec import resolve
from pswire.body import Body
from pswire.errors import InternalError, InvalidRequestError, NonFiniteError
from pswire.layout import Layout

Arrays = dict[str, npt.NDArray[Any]]


class _Rule:
    """A compiled rule, its variables and gradients as plain arrays."""

    def __init__(self, rule: object, variables: Arrays) -> None:
        self._layout = Layout.of(variables)
        self._compiled = CompiledRule(require_rule(rule), self._layout)
        self.needs_value = self._compiled.needs_value

    def start(self, variables: Arrays) -> State:
        return self._compiled.start(Body.gather(self._layout, variables))

    def apply(self, state: State, gradients: Arrays, value: float | None) -> State:
        body = Body.gather(self._layout, gradients)
        return self._compiled.apply(state, body, value)

    def variables(self, state: State) -> Arrays:
        return dict(Body(self._layout, list(self._compiled.runs(state))))

    def slots(self, state: State) -> Arrays:
        return dict(self._compiled.slots(state).arrays)


def _compile(rule: object, variables: Arrays) -> _Rule:
    return _Rule(rule, variables)


def _numbers(seed: int, dtype: npt.DTypeLike = np.float32) -> Iterator[Arrays]:
    """Yield variables first, then gradients like them."""
    generator = np.random.default_rng(seed)
    while True:
        yield {
            "w": generator.normal(size=(2, 3)).astype(dtype),
            "b": generator.normal(size=4).astype(dtype),
        }


def _by_optax(
    rule: Any, variables: Arrays, gradients: list[Arrays], values: list[float] | None
) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any, gradient: Any, extra: Any) -> tuple[Any, Any]:
        updates, state = rule.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params: Any = {name: jnp.asarray(array) for name, array in variables.items()}
    state = rule.init(params)
    for number, gradient in enumerate(gradients):
        extra = {"value": values[number]} if values else {}
        params, state = step(params, state, gradient, extra)
    slots = {
        f"slots{jax.tree_util.keystr(path)}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return params, slots


def _assert_close(got: Any, expected: Any, rtol: float = 1e-6) -> None:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (got, expected)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float64), np.asarray(other, np.float64), rtol, 1e-7
        )


def _bytes(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_compiled_rule_goes_where_optax_goes(
    rule: optax.GradientTransformation,
) -> None:
    """Five steps: variables and slots, both to the last digits of float32."""
    numbers = _numbers(seed=1)
    variables = next(numbers)
    gradients = [next(numbers) for _ in range(5)]
    compiled = _compile(rule, variables)

    state = compiled.start(variables)
    for gradient in gradients:
        state = compiled.apply(state, gradient, None)

    _assert_close(
        (compiled.variables(state), compiled.slots(state)),
        _by_optax(rule, variables, gradients, None),
    )
    assert {type(array) for array in compiled.variables(state).values()} == {np.ndarray}


@pytest.mark.parametrize(
    "rule",
    [
        optax.chain(
            optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        ),
        optax.polyak_sgd(max_learning_rate=0.1),
    ],
    ids=["reduce_on_plateau", "polyak_sgd"],
)
def test_a_rule_that_needs_the_loss_gets_it(rule: Any) -> None:
    """A loss that stands still halves the plateau's step size; polyak's follows it."""
    numbers = _numbers(seed=2)
    variables = next(numbers)
    gradients = [next(numbers) for _ in range(5)]
    values = [2.0, 2.0, 2.0, 2.0, 0.5]
    compiled = _compile(rule, variables)

    state = compiled.start(variables)
    for gradient, value in zip(gradients, values, strict=True):
        state = compiled.apply(state, gradient, value)

    _assert_close(
        (compiled.variables(state), compiled.slots(state)),
        _by_optax(rule, variables, gradients, values),
    )
    assert compiled.needs_value


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1e300])
def test_a_rule_that_needs_the_loss_refuses_a_push_without(value: float | None) -> None:
    """A loss that is no number, or none in float32, is none."""
    variables = {"w": np.ones(2, np.float32)}
    compiled = _compile(optax.polyak_sgd(), variables)
    state = compiled.start(variables)

    with pytest.raises(
        InvalidRequestError,
        match=rf"^value: expected the loss, which .*, got {re.escape(str(value))}$",
    ):
        compiled.apply(state, variables, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, -1e300])
def test_a_loss_that_the_rule_does_not_want_does_no_harm(value: float) -> None:
    """It travels as a double, so it may be larger than any float32."""
    variables = {"w": np.ones(2, np.float32)}
    compiled = _compile(optax.sgd(0.5), variables)

    changed = compiled.variables(
        compiled.apply(compiled.start(variables), variables, value)
    )

    assert changed["w"].tolist() == [0.5, 0.5]
    assert not compiled.needs_value


@pytest.mark.parametrize(
    "rule", [optax.lbfgs(), optax.scale_by_zoom_linesearch(5)], ids=["lbfgs", "search"]
)
def test_a_rule_that_evaluates_the_loss_by_itself_is_refused(rule: Any) -> None:
    """Only workers have the loss function and the data."""
    variables = {"w": np.ones(2, np.float32)}

    with pytest.raises(
        InvalidRequestError, match=r"^rule: expected one that needs the gradients, "
    ):
        _compile(rule, variables)


@pytest.mark.parametrize(
    ("rule", "size", "culprit"),
    [
        (optax.adam(0.1), 1e30, r"slots\[0\]\.nu\['b'\]"),
        (optax.adagrad(0.1), 1e20, r"slots.*sum_of_squares\['b'\]"),
        (optax.sgd(1e38), 10.0, "b"),
    ],
    ids=["adam", "adagrad", "sgd"],
)
def test_an_overflow_in_the_rule_is_refused_and_changes_nothing(
    rule: Any, size: float, culprit: str
) -> None:
    """Adam's second moment holds squares, and 1e30 squared is beyond float32."""
    variables = {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)}
    sound = {"a": np.full(3, 1e-3, np.float32), "b": np.full(2, 1e-3, np.float32)}
    poisoned = {**sound, "b": np.array([1e-3, size], np.float32)}
    compiled = _compile(rule, variables)
    state = compiled.apply(compiled.start(variables), sound, None)
    before = _bytes((state, poisoned))
    expected = _bytes(compiled.apply(state, sound, None))

    with pytest.raises(
        NonFiniteError,
        match=rf"^{culprit}: expected a finite result of the rule, got an overflow",
    ):
        compiled.apply(state, poisoned, None)

    assert _bytes((state, poisoned)) == before
    assert _bytes(compiled.apply(state, sound, None)) == expected


def test_an_apply_leaves_what_it_was_given_as_it_was(
    rule: optax.GradientTransformation,
) -> None:
    """The same call twice gives the same bits: a snapshot may still be read."""
    numbers = _numbers(seed=3)
    variables, gradients = next(numbers), next(numbers)
    compiled = _compile(rule, variables)
    state = compiled.start(variables)
    before = _bytes((state, gradients))

    once = compiled.apply(state, gradients, None)
    again = compiled.apply(state, gradients, None)

    assert _bytes(once) == _bytes(again)
    assert _bytes((state, gradients)) == before


def test_the_first_pushes_compile_nothing(rule: optax.GradientTransformation) -> None:
    """JAX calls the rule just when it compiles, which a push need not wait for."""
    calls = 0

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        nonlocal calls
        calls += 1
        return rule.update(updates, state, params)

    variables = next(_numbers(seed=4))
    compiled = _compile(optax.GradientTransformation(rule.init, update), variables)
    state = compiled.start(variables)
    compiled_with = calls

    for _ in range(3):
        state = compiled.apply(state, variables, None)

    assert calls == compiled_with > 0


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        (np.float16, 1e-2),
        (ml_dtypes.bfloat16, 1e-1),
        (np.float32, 1e-6),
    ],
)
def test_variables_keep_their_type(dtype: npt.DTypeLike, rtol: float) -> None:
    """Momentum, in the variables' own type; optax itself is the measure."""
    numbers = _numbers(seed=5, dtype=dtype)
    variables = next(numbers)
    gradients = [next(numbers) for _ in range(3)]
    rule = optax.sgd(0.1, momentum=0.9)
    compiled = _compile(rule, variables)

    state = compiled.start(variables)
    for gradient in gradients:
        state = compiled.apply(state, gradient, None)

    expected = _by_optax(rule, variables, gradients, None)
    _assert_close((compiled.variables(state), compiled.slots(state)), expected, rtol)
    assert {array.dtype for array in compiled.variables(state).values()} == {
        np.dtype(dtype)
    }


@pytest.mark.parametrize(
    "rule",
    [optax.sgd(1.0), resolve("sgd", {"learning_rate": 1})],
    ids=["sgd", "by_name"],
)
def test_float64_is_computed_in_float64_and_only_there(rule: object) -> None:
    """The rest of the process keeps its 32 bits, and float32 beside it too."""
    variables: Arrays = {"d": np.ones(2), "f": np.ones(2, np.float32)}
    gradients: Arrays = {"d": np.full(2, 1e-12), "f": np.full(2, 0.5, np.float32)}
    compiled = _compile(rule, variables)

    changed = compiled.variables(
        compiled.apply(compiled.start(variables), gradients, None)
    )

    assert changed["d"].tolist() == [1 - 1e-12] * 2
    assert [changed[name].dtype.name for name in "df"] == ["float64", "float32"]
    assert jnp.asarray(np.ones(2)).dtype == np.float32


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_variables_have_rules_too(shape: tuple[int, ...]) -> None:
    """Beside one of the ordinary kind, with a norm over all."""
    variables = {"odd": np.ones(shape, np.float32), "w": np.ones(2, np.float32)}
    rule = optax.chain(optax.clip_by_global_norm(100.0), optax.sgd(1.0))
    compiled = _compile(rule, variables)

    changed = compiled.variables(
        compiled.apply(compiled.start(variables), variables, None)
    )

    assert changed["odd"].shape == shape
    assert not changed["odd"].any()
    assert changed["w"].tolist() == [0, 0]


def test_a_rule_that_fails_while_it_runs_is_an_internal_error() -> None:
    """The next push finds the rule as it was."""
    broken = False

    def scale(updates: Any) -> Any:
        if broken:
            raise ZeroDivisionError("no luck")
        return jax.tree.map(np.negative, updates)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.pure_callback(scale, updates, updates), state

    variables = {"w": np.ones(2, np.float32)}
    rule = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    compiled = _compile(rule, variables)
    state = compiled.start(variables)

    broken = True
    with pytest.raises(InternalError, match=r"^rule: failed with [^\0]*no luck"):
        compiled.apply(state, variables, None)
    broken = False
    changed = compiled.variables(compiled.apply(state, variables, None))

    assert changed["w"].tolist() == [0, 0]


def test_a_rule_that_cannot_run_on_the_variables_is_refused_at_once() -> None:
    """Whoever brings the variables learns why."""

    def init(params: Any) -> Any:
        raise KeyError("embedding")

    rule = optax.GradientTransformation(init, optax.sgd(1.0).update)

    with pytest.raises(
        InvalidRequestError, match=r"^rule: expected .*, got KeyError: 'embedding'$"
    ):
        _compile(rule, {"w": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("rule", "got"),
    [(optax.adam, "adam"), (None, "NoneType"), ("adam", "str"), (1e-3, "float")],
)
def test_what_is_no_rule_is_refused(rule: object, got: str) -> None:
    """A factory that nobody has called is the usual slip."""
    with pytest.raises(
        ValueError,
        match=rf"^rule: expected an optax gradient transformation .*, got {got}$",
    ):
        require_rule(rule)


def test_a_rule_may_keep_a_random_key_among_its_slots() -> None:
    """A key is no number, so there is nothing of it that could overflow."""
    rule = optax.add_noise(eta=0.1, gamma=0.5, key=jax.random.key(0))
    variables = {"w": np.ones(2, np.float32)}
    compiled = _compile(rule, variables)
    state = compiled.start(variables)

    state = compiled.apply(state, variables, None)
    first = compiled.variables(state)
    second = compiled.variables(compiled.apply(state, variables, None))

    assert np.isfinite(first["w"]).all()
    assert first["w"].tolist() != second["w"].tolist()
