"""Rules on many odd variables, whose bytes lie end to end, do what optax does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver.rules import CompiledRule, State, require_rule
from psserver.store import Store
from pswire import body
from pswire.body import Body
from pswire.errors import NonFiniteError
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader

Arrays = Mapping[str, npt.NDArray[Any]]
Spec = tuple[tuple[int, ...], npt.DTypeLike]

_SPECS: dict[str, Spec] = {
    "empty": ((0, 3), np.float32),
    "a": ((3,), np.float32),
    "count": ((5,), np.int32),
    "scalar": ((), np.float32),
    "c": ((17,), np.float32),
    "half": ((7,), np.float16),
    "brain": ((3, 3), ml_dtypes.bfloat16),
    "wide brain": ((33,), ml_dtypes.bfloat16),
    "mask": ((3,), np.bool_),
    "one": ((1,), np.float32),
    "y": ((41,), np.float32),
    "half scalar": ((), np.float16),
    "half y": ((2, 5), np.float16),
}
_WITH_DOUBLES: dict[str, Spec] = {
    **_SPECS,
    "double": ((5,), np.float64),
    "doubles": ((2, 3), np.float64),
    "z": ((2, 2), np.float32),
}

_ELEMENTWISE = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "lion": optax.lion(0.1),
    "decaying": optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.exponential_decay(0.1, 2, 0.5)
    ),
}
_OTHERS = {
    "clipped": optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)
    ),
    "masked": optax.adamw(
        0.1, mask=lambda params: {name: p.ndim > 1 for name, p in params.items()}
    ),
}

_EPS = {
    "float16": 2**-10,
    "bfloat16": 2**-7,
    "float32": 2**-23,
    "float64": 2**-52,
}

_x64_home: Any = jax if hasattr(jax, "enable_x64") else jax.experimental


def _arrays(specs: Mapping[str, Spec], seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        name: (3 * generator.normal(size=shape)).astype(dtype)
        for name, (shape, dtype) in specs.items()
    }


class _Rule:
    """A compiled rule, its variables and gradients as plain arrays."""

    def __init__(self, rule: Any, variables: Arrays) -> None:
        self._layout = Layout.of(variables)
        self._compiled = CompiledRule(require_rule(rule), self._layout)
        self.state = self._compiled.start(Body.gather(self._layout, variables))

    def apply(self, gradients: Arrays) -> None:
        flat = Body.gather(self._layout.trainable, gradients)
        self.state = self._compiled.apply(self.state, flat, None)

    def variables(self) -> Arrays:
        whole = Body(self._layout, list(self._compiled.runs(self.state)))
        return {spec.name: whole[spec.name] for spec in self._layout.trainable}

    def slots(self) -> Arrays:
        return self._compiled.slots(self.state).arrays

    def bits(self) -> list[bytes]:
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(self.state)]


@contextmanager
def _precision_of(variables: Arrays) -> Iterator[None]:
    doubles = any(array.dtype == np.float64 for array in variables.values())
    with _x64_home.enable_x64(doubles):
        yield


def _by_optax(
    rule: Any, variables: Arrays, gradients: Sequence[Arrays]
) -> tuple[Arrays, Arrays]:
    """Apply a rule to the arrays one by one, as a worker alone would."""

    @jax.jit
    def step(params: Any, slots: Any, gradient: Any) -> Any:
        updates, slots = rule.update(gradient, slots, params)
        return optax.apply_updates(params, updates), slots

    with _precision_of(variables):
        params: Any = {name: jnp.asarray(variables[name]) for name in gradients[0]}
        slots = rule.init(params)
        for gradient in gradients:
            params, slots = step(params, slots, gradient)
    named = {
        f"slots{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slots)
    }
    return {name: np.asarray(array) for name, array in params.items()}, named


def _assert_same(got: Arrays, expected: Arrays, digits: int = 0) -> None:
    """Compare all but so many of each type's last digits; with 0, bit for bit."""
    assert got.keys() == expected.keys()
    for name, array in got.items():
        other = expected[name]
        assert (name, array.dtype, array.shape) == (name, other.dtype, other.shape)
        if digits and jnp.issubdtype(array.dtype, jnp.inexact):
            eps = _EPS[array.dtype.name]
            np.testing.assert_allclose(
                array.astype(np.float64),
                other.astype(np.float64),
                rtol=digits * eps,
                atol=digits * eps,
                err_msg=name,
            )
        else:
            assert (name, array.tobytes()) == (name, other.tobytes())


def _run(
    rule: Any, specs: Mapping[str, Spec]
) -> tuple[tuple[Arrays, Arrays], tuple[Arrays, Arrays]]:
    """Return variables and slots after four steps, ours and optax's."""
    variables = _arrays(specs, seed=0)
    trainable = [spec.name for spec in Layout.of(variables).trainable]
    gradients = [
        {
            name: array
            for name, array in _arrays(specs, seed).items()
            if name in trainable
        }
        for seed in range(1, 5)
    ]
    ours = _Rule(rule, variables)
    for gradient in gradients:
        ours.apply(gradient)
    return (ours.variables(), ours.slots()), _by_optax(rule, variables, gradients)


@pytest.mark.parametrize("rule", _ELEMENTWISE.values(), ids=list(_ELEMENTWISE))
def test_an_elementwise_rule_changes_every_variable_bit_for_bit_as_alone(
    rule: Any,
) -> None:
    """Four steps on odd sizes of three types, others in between; slots by name too."""
    (variables, slots), (params, named) = _run(rule, _SPECS)

    _assert_same(variables, params)
    _assert_same(slots, named)


@pytest.mark.parametrize("rule", _OTHERS.values(), ids=list(_OTHERS))
def test_another_rule_sees_the_variables_as_they_are(rule: Any) -> None:
    """To the last digits of each type: a norm is summed in another order."""
    (variables, slots), (params, named) = _run(rule, _SPECS)

    _assert_same(variables, params, digits=2)
    _assert_same(slots, named, digits=2)


@pytest.mark.parametrize("name", ["momentum", "masked"])
def test_among_doubles_every_type_is_computed_as_by_optax_with_doubles(
    name: str,
) -> None:
    """Float64 switches JAX to 64 bits for all variables, however they lie."""
    rules: dict[str, Any] = {**_ELEMENTWISE, **_OTHERS}

    (variables, slots), (params, named) = _run(rules[name], _WITH_DOUBLES)

    _assert_same(variables, params, digits=2)
    _assert_same(slots, named, digits=2)
    assert variables["doubles"].dtype == np.float64


def test_a_large_variable_among_small_ones_is_updated_like_them() -> None:
    """A rule that sees arrays gets a large one by itself; the result is the same."""
    specs: dict[str, Spec] = {
        "a": ((3,), np.float32),
        "large": ((257, 257), np.float32),
        "b": ((5,), np.float32),
        "c": ((), np.float32),
    }
    rule = optax.adamw(
        0.1, mask=lambda params: {name: p.ndim > 1 for name, p in params.items()}
    )

    (variables, slots), (params, named) = _run(rule, specs)

    _assert_same(variables, params, digits=2)
    _assert_same(slots, named, digits=2)


def test_hundreds_of_variables_are_updated_each_by_its_own_gradient() -> None:
    """A gradient tells its variable's number, so that none can be mistaken."""
    specs: dict[str, Spec] = {f"v{i}": ((i % 37,), np.float32) for i in range(300)}
    variables = {name: np.zeros(shape, dtype) for name, (shape, dtype) in specs.items()}
    rule = _Rule(optax.sgd(1.0), variables)

    rule.apply({name: np.full_like(a, -int(name[1:])) for name, a in variables.items()})

    changed = rule.variables()
    assert {name: set(array.tolist()) for name, array in changed.items()} == {
        f"v{i}": {float(i)} if i % 37 else set() for i in range(300)
    }


# What lies between the arrays


def _filling(value: float) -> optax.GradientTransformation:
    """Update everything by one value, whatever the gradient."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda g: jnp.full(g.shape, value, g.dtype), updates
        )
    )


_DIVISION = optax.stateless(
    lambda updates, params: jax.tree.map(lambda g, p: g / p, updates, params)
)


@pytest.mark.parametrize(
    "rule",
    [
        _filling(1.0),
        _DIVISION,
        optax.chain(optax.clip_by_global_norm(1e3), _filling(1.0)),
    ],
    ids=["filling", "division", "not_elementwise"],
)
def test_what_is_published_has_zeros_between_the_arrays(rule: Any) -> None:
    """Also of a rule that makes something, or NaN, of zeros; three steps."""
    variables = {name: np.ones(shape, dtype) for name, (shape, dtype) in _SPECS.items()}
    layout = Layout.of(variables)
    store = Store(
        rule,
        rule_name="test",
        limits=Limits(
            max_staleness=None,
            max_grad_norm=None,
            max_model_nbytes=2**30,
            max_unary_nbytes=2**20,
        ),
        generation="g",
        incarnation="i",
        now=0.0,
    )
    store.join("worker", "s", 0.0)
    store.initialize("s", layout, lambda _: variables, 0.0)

    pushes = [
        PushHeader("s", seq, "g", seq - 1, layout.trainable.nbytes) for seq in (1, 2, 3)
    ]
    verdicts = [store.push(push, lambda _: variables, 0.0) for push in pushes]

    _, snapshot = store.pull("", 0.0)
    published = body.join(layout, snapshot.params)
    assert [verdict.applied for verdict in verdicts] == [True] * 3
    assert not np.frombuffer(published, np.uint8)[layout.gaps].any()
    assembly = body.Assembly(layout)
    assembly.add(0, bytes(published))
    arrived = assembly.finish()  # It refuses anything but zeros there.
    assert {name: arrived[name].ravel()[:1].tolist() for name in ("count", "mask")} == {
        "count": [1],
        "mask": [True],
    }
    assert (arrived["y"] > 1).all()


def test_what_lies_between_the_arrays_does_not_reach_the_others() -> None:
    """It may become infinite, step by step, and no push is refused for it."""
    huge = float(np.finfo(np.float32).max)
    variables = {"a": np.full(3, -huge, np.float32), "b": np.full(5, -huge, np.float32)}
    rule = _Rule(_filling(huge / 2), variables)

    for _ in range(4):
        rule.apply(variables)

    for array in rule.variables().values():
        assert array.tolist() == [huge] * array.size


# Overflows


_FULL_RANGE = {name: spec for name, spec in _SPECS.items() if "half" not in name}


@pytest.mark.parametrize(
    ("rule", "specs", "poisoned", "size", "culprit"),
    [
        (optax.adam(0.1), _FULL_RANGE, "c", 1e30, r"slots\[0\]\.nu\['c'\]"),
        (
            optax.adam(0.1),
            _FULL_RANGE,
            "wide brain",
            1e30,
            r"slots\[0\]\.nu\['wide brain'\]",
        ),
        (_OTHERS["masked"], _FULL_RANGE, "y", 1e30, r"slots\[0\]\.nu\['y'\]"),
        (optax.sgd(20.0), _SPECS, "half y", 6e4, "half y"),
        (optax.sgd(20.0), _SPECS, "scalar", 3e38, "scalar"),
    ],
    ids=["slot", "brain_slot", "masked", "half", "scalar"],
)
def test_an_overflow_names_what_overflows_and_changes_nothing(
    rule: Any, specs: Mapping[str, Spec], poisoned: str, size: float, culprit: str
) -> None:
    """One element of one variable among many; the next push finds all as it was."""
    tiny = {n: np.full(s, 1e-3).astype(d) for n, (s, d) in specs.items()}
    sound = {spec.name: tiny[spec.name] for spec in Layout.of(tiny).trainable}
    ours, twin = _Rule(rule, tiny), _Rule(rule, tiny)
    for each in (ours, twin):
        each.apply(sound)
    poison = {name: array.copy() for name, array in sound.items()}
    poison[poisoned].reshape(-1)[-1:] = size
    before = ours.bits()

    with pytest.raises(
        NonFiniteError,
        match=rf"^{culprit}: expected a finite result of the rule, got an overflow",
    ):
        ours.apply(poison)

    assert ours.bits() == before
    for each in (ours, twin):
        each.apply(sound)
    assert ours.bits() == twin.bits()


def test_infinities_that_are_meant_stay_beside_others_that_are_not() -> None:
    """A variable that begins infinite goes on; its neighbour may not become so."""
    variables = {
        "mask": np.array([-np.inf, 0], np.float32),
        "w": np.ones(3, np.float32),
    }
    rule = _Rule(optax.sgd(1e38), variables)
    sound = {name: np.zeros_like(array) for name, array in variables.items()}
    poison = {**sound, "w": np.array([0, 10, 0], np.float32)}

    rule.apply(sound)
    with pytest.raises(NonFiniteError, match=r"^w: expected a finite result"):
        rule.apply(poison)

    assert rule.variables()["mask"].tolist() == [-np.inf, 0]
    assert rule.variables()["w"].tolist() == [1, 1, 1]


def test_a_state_outlives_the_steps_after_it() -> None:
    """A snapshot may still be read: its bytes do not change with the next pushes."""
    variables = _arrays(_SPECS, seed=0)
    gradients = {
        spec.name: variables[spec.name] for spec in Layout.of(variables).trainable
    }
    rule = _Rule(optax.adam(0.1), variables)
    states: list[State] = []
    bits: list[list[bytes]] = []

    for _ in range(3):
        states.append(rule.state)
        bits.append(rule.bits())
        rule.apply(gradients)

    for state, expected in zip(states, bits, strict=True):
        rule.state = state
        assert rule.bits() == expected
    assert len({tuple(each) for each in bits}) == 3


@pytest.mark.parametrize(
    "rule",
    [
        optax.adamw(
            0.1,
            weight_decay=0.5,
            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
        ),
        optax.masked(optax.adam(0.1), {"w": True, "u": True}),
        optax.multi_transform({"a": optax.sgd(0.1)}, {"w": "a", "u": "a"}),
        optax.multi_transform(
            {"a": optax.sgd(0.1), "b": optax.sgd(0.5)},
            lambda tree: {name: "a" if name in ("w", "u") else "b" for name in tree},
        ),
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda leaf: -leaf / len(updates), updates)
        ),
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda leaf: -leaf / leaf.size, updates)
        ),
    ],
    ids=["rank", "named mask", "labels", "labels by name", "number", "size"],
)
def test_a_rule_that_looks_at_names_and_shapes_sees_the_variables(rule: Any) -> None:
    """Also where all of them look alike to it."""
    variables = {"w": np.ones((2, 3), np.float32), "u": np.ones((3, 2), np.float32)}
    flat = _Rule(rule, variables)

    flat.apply(variables)

    params = {name: jnp.asarray(array) for name, array in variables.items()}
    updates, _ = rule.update(params, rule.init(params), params)
    for name, expected in optax.apply_updates(params, updates).items():
        np.testing.assert_allclose(flat.variables()[name], expected, 1e-5)


def test_an_update_too_small_to_see_leaves_the_gaps_zero() -> None:
    """Minus zero is equal to zero, and is not the same bits."""
    variables = {"a": np.ones(3, np.float16), "b": np.ones(5, np.float16)}
    rule = optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, -1e-10, jnp.float32), updates
        )
    )
    layout = Layout.of(variables)
    compiled = CompiledRule(require_rule(rule), layout)
    state = compiled.start(Body.gather(layout, variables))

    state = compiled.apply(state, Body.gather(layout, variables), None)

    ((_, stored),) = compiled.runs(state)
    assert not stored[layout.gaps].any()


def test_a_rule_may_number_its_slots() -> None:
    """The numbers are its own, not those of segments."""
    rule = optax.GradientTransformation(
        lambda params: {7: jnp.zeros((), jnp.int32)},
        lambda updates, slots, params=None: (updates, {7: slots[7] + 1}),
    )
    layout = Layout.of({"w": np.ones(3, np.float32)})
    compiled = CompiledRule(require_rule(rule), layout)

    state = compiled.start(Body.zeros(layout))

    assert list(compiled.slots(state).arrays) == ["slots[7]"]
