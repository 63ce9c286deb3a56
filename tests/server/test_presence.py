"""Pushes of some variables: the others, and what the rule keeps of them, stay."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psserver.rules import CompiledRule, State, require_rule
from pswire.body import Body
from pswire.errors import NonFiniteError
from pswire.layout import Layout

Arrays = Mapping[str, npt.NDArray[Any]]

# Of two types, in several segments, one of them empty, and one that has no gradient.
_VARIABLES: Arrays = {
    "a": np.linspace(-1, 1, 3, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "w": np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3),
    "half": np.linspace(0.5, 1, 7).astype(np.float16),
    "count": np.arange(4),
    "scalar": np.asarray(3.0, np.float32),
    "z": np.linspace(-2, 2, 17, dtype=np.float32),
}
_LAYOUT = Layout.of(_VARIABLES)
_NAMES = [spec.name for spec in _LAYOUT.trainable]
_SUBSETS = [{"a"}, {"w", "half"}, {"empty"}, {*_NAMES} - {"z"}]


def _by_rank(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


_SEEING_ARRAYS: dict[str, Callable[[], Any]] = {
    "masked": lambda: optax.masked(optax.adam(0.1), _by_rank),
    "decayed": lambda: optax.adamw(0.1, weight_decay=0.5, mask=_by_rank),
    "labelled": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)},
        lambda tree: {name: "a" if name < "h" else "b" for name in tree},
    ),
    "labelled by names": lambda: optax.multi_transform(
        {name: optax.sgd(0.1, momentum=0.9) for name in _NAMES},
        dict(zip(_NAMES, reversed(_NAMES), strict=True)),
    ),
    "factored": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "accumulated": lambda: optax.MultiSteps(
        optax.adam(0.1), 2
    ).gradient_transformation(),
}
_ELEMENTWISE: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.5),
    "scheduled": lambda: optax.sgd(optax.exponential_decay(0.5, 2, 0.5)),
}


class _Rule:
    """A compiled rule over variables, and its state."""

    def __init__(self, rule: Any, variables: Arrays = _VARIABLES) -> None:
        self.layout = Layout.of(variables)
        self.compiled = CompiledRule(require_rule(rule), self.layout)
        self.state = self.compiled.start(Body.gather(self.layout, variables))

    def push(
        self, gradients: Arrays, present: set[str] | None, factor: float = 1.0
    ) -> None:
        body = Body.zeros(self.layout.trainable)
        for name, gradient in gradients.items():
            if present is None or name in present:
                body[name][...] = gradient
        self.state = self.compiled.apply(self.state, body, None, factor, present)

    def after(
        self, state: State, pushes: Sequence[Arrays], present: set[str] | None
    ) -> Arrays:
        """Return the arrays that come of a state by some pushes."""
        self.state = state
        for gradients in pushes:
            self.push(gradients, present)
        return self.arrays()

    def arrays(self) -> Arrays:
        """Return the trainable variables, and the slots as checkpoints name them."""
        body = Body(self.layout, list(self.compiled.runs(self.state)))
        variables = {spec.name: body[spec.name] for spec in self.layout.trainable}
        return {**variables, **self.compiled.slots(self.state).arrays}


def _gradients(seed: int, layout: Layout = _LAYOUT) -> Arrays:
    draw = np.random.default_rng(seed)
    return {
        spec.name: (0.1 + draw.random(spec.shape)).astype(spec.dtype)
        for spec in layout.trainable
    }


def _is_of(array: str, variables: set[str]) -> bool:
    """Say whether an array is one of the variables, or a slot of it."""
    return array in variables or any(array.endswith(f"['{v}']") for v in variables)


def _assert_same(got: npt.NDArray[Any], expected: npt.NDArray[Any], name: str) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
    assert got.tobytes() == expected.tobytes(), name


def _assert_close(got: npt.NDArray[Any], expected: npt.NDArray[Any], name: str) -> None:
    """Compare all but the last digits: another program may round otherwise."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
    digits = 2e-3 if got.dtype == np.float16 else 2e-6
    np.testing.assert_allclose(
        *(got.astype(np.float64), expected.astype(np.float64)),
        rtol=digits,
        atol=digits,
        err_msg=name,
    )


def _check_some(rule: Any) -> None:
    some = _Rule(rule)
    some.push(_gradients(1), None)
    first, before = some.state, some.arrays()
    for subset in _SUBSETS:
        pushes = [
            {
                name: array if name in subset else np.zeros_like(array)
                for name, array in _gradients(seed).items()
            }
            for seed in (2, 3)
        ]

        after = some.after(first, pushes, subset)

        wanted = some.after(first, pushes, None)
        assert after.keys() == before.keys()
        for name, array in after.items():
            if _is_of(name, {*_NAMES} - subset):
                _assert_same(array, before[name], name)
            else:
                _assert_close(array, wanted[name], name)


def test_what_is_absent_stays_to_the_bit_and_the_rest_goes_on(
    rule: optax.GradientTransformation,
) -> None:
    """Two pushes: what belongs to no variable, as a count, goes on with each."""
    _check_some(rule)


@pytest.mark.parametrize("make", _SEEING_ARRAYS.values(), ids=list(_SEEING_ARRAYS))
def test_a_rule_that_sees_arrays_leaves_the_absent_ones_too(
    make: Callable[[], Any],
) -> None:
    """Whatever trees it keeps: masked ones, one for each label, of other shapes."""
    _check_some(make())


class _Alone:
    """Each variable under a rule of its own, by optax; what they share goes on."""

    def __init__(self, rule: Any, variables: Arrays) -> None:
        def step(params: Any, slots: Any, gradient: Any) -> Any:
            updates, slots = rule.update(gradient, slots, params)
            return optax.apply_updates(params, updates), slots

        self._step = jax.jit(step)
        self._first: Any = {n: jnp.asarray(a) for n, a in variables.items()}
        self._rule = rule
        self.restart()

    def restart(self) -> None:
        self.params = dict(self._first)
        self.slots = {n: self._rule.init(p) for n, p in self.params.items()}

    def push(self, gradients: Arrays, present: set[str]) -> None:
        for name, gradient in gradients.items():
            before = self.slots[name]
            given = gradient if name in present else jnp.zeros_like(gradient)
            params, slots = self._step(self.params[name], before, given)
            if name in present:
                self.params[name], self.slots[name] = params, slots
            else:  # No variable is a scalar, so a scalar is a count.
                self.slots[name] = jax.tree.map(
                    lambda old, new: old if old.shape else new, before, slots
                )


_PLAIN: Arrays = {"u": np.ones((2, 2), np.float32), "v": np.ones(3, np.float32)}
_PLAIN_LAYOUT = Layout.of(_PLAIN)


@cache
def _compiled(name: str) -> tuple[_Rule, State, _Alone]:
    rule = _ELEMENTWISE[name]()
    ours = _Rule(rule, _PLAIN)
    return ours, ours.state, _Alone(rule, _PLAIN)


@pytest.mark.parametrize("name", _ELEMENTWISE)
@settings(max_examples=20, deadline=None)
@given(subsets=st.lists(st.sets(st.sampled_from(["u", "v"]), min_size=1), max_size=8))
def test_any_pushes_of_some_do_to_each_variable_what_its_own_pushes_do(
    name: str, subsets: Sequence[set[str]]
) -> None:
    """Beside optax on every variable alone, whose counts go on with every push."""
    ours, first, alone = _compiled(name)
    ours.state = first
    alone.restart()

    for seed, present in enumerate(subsets):
        gradients = _gradients(seed, _PLAIN_LAYOUT)
        ours.push(gradients, None if len(present) == 2 else present)
        alone.push(gradients, present)

    got = ours.arrays()
    for variable in _PLAIN:
        _assert_close(got[variable], np.asarray(alone.params[variable]), variable)
        for path, slot in jax.tree_util.tree_leaves_with_path(alone.slots[variable]):
            key = f"slots{jax.tree_util.keystr(path)}"
            key = key if key in got else f"{key}['{variable}']"
            _assert_close(got[key], np.asarray(slot), key)


def test_a_norm_over_all_variables_takes_the_absent_for_zero() -> None:
    """A gradient of (3, 4) alone is clipped to a fifth of it."""
    rule = _Rule(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    before = rule.arrays()["a"]

    rule.push({"a": np.array([3, 0, 4], np.float32)}, {"a"})

    np.testing.assert_allclose(before - rule.arrays()["a"], [0.6, 0, 0.8], rtol=1e-6)


def test_a_factor_weighs_what_is_present_alone() -> None:
    """Half of a step for one, none for the others."""
    rule = _Rule(optax.sgd(1.0), _PLAIN)

    rule.push({"v": np.full(3, 4, np.float32)}, {"v"}, factor=0.5)

    assert rule.arrays()["v"].tolist() == [-1, -1, -1]
    assert (rule.arrays()["u"] == 1).all()


_DIRECTION = optax.stateless(
    lambda updates, _: jax.tree.map(lambda g: -g / jnp.max(jnp.abs(g)), updates)
)


def test_what_a_rule_makes_of_an_absent_gradient_is_nobodys_error() -> None:
    """Zero by zero is no number, which matters only to a push that brings zeros."""
    variables = {"u": np.ones(2, np.float32), "v": np.ones(40_000, np.float32)}
    rule = _Rule(_DIRECTION, variables)
    ones = {"u": np.ones(2, np.float32)}

    rule.push(ones, {"u"})
    with pytest.raises(NonFiniteError, match=r"^v: expected a finite result"):
        rule.push(ones, None)

    assert rule.arrays()["u"].tolist() == [0, 0]
    assert rule.arrays()["v"].tolist() == [1] * 40_000


@pytest.mark.parametrize("size", [3, 40_000])
def test_an_overflow_of_what_is_present_is_named_and_changes_nothing(size: int) -> None:
    """Of a model whose result numpy looks through, and of a larger one."""
    variables = {"u": np.ones(2, np.float32), "v": np.ones(size, np.float32)}
    rule = _Rule(optax.adam(0.1), variables)
    before = rule.arrays()

    with pytest.raises(NonFiniteError, match=r"^slots\[0\]\.nu\['v'\]: expected a fin"):
        rule.push({"v": np.full(size, 1e30, np.float32)}, {"v"})

    after = rule.arrays()
    for name, array in before.items():
        _assert_same(after[name], array, name)


def test_once_prepared_nothing_is_compiled_for_pushes_of_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever they are, with a factor and without."""
    rules = [optax.adam(0.1), _ELEMENTWISE["scheduled"](), _SEEING_ARRAYS["masked"]()]
    for rule in map(_Rule, rules):
        for weighed in (False, True):
            rule.compiled.prepare(rule.state, weighed=weighed, some=True)

        with jax.log_compiles(), caplog.at_level("WARNING"):
            for seed, subset in enumerate([{"a"}, {"w", "z"}, {"half"}]):
                rule.push(_gradients(seed), subset)
                rule.push(_gradients(seed), subset, factor=0.25)

        assert "Compiling" not in caplog.text
