"""Which rules may run on many arrays as if they were one, and which may not."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver.elementwise import is_elementwise
from psserver.rules import require_rule
from pswire.layout import Layout
from pswire.segments import segments

Arrays = Mapping[str, npt.NDArray[Any]]
Make = Callable[[], optax.GradientTransformation]

_MODEL: Arrays = {
    "w": np.ones((2, 3), np.float32),
    "b": np.ones(4, np.float32),
    "s": np.ones((), np.float32),
}


def _says(rule: optax.GradientTransformation, variables: Arrays = _MODEL) -> bool:
    """Ask about a rule as the server runs it."""
    whole = require_rule(rule)

    def update(params: Any, slots: Any, gradients: Any, value: Any) -> Any:
        updates, slots = whole.update(gradients, slots, params, value=value)
        return optax.apply_updates(params, updates), slots

    layout = Layout.of(variables)
    apart = {a.name: jax.ShapeDtypeStruct(a.shape, a.dtype) for a in layout}
    together = {
        number: jax.ShapeDtypeStruct((segment.size,), segment.dtype)
        for number, segment in enumerate(segments(layout, apart=False))
    }
    return is_elementwise(whole.init, update, apart, together)


def _each(function: Callable[[Any], Any]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(function, updates))


def _every(function: Callable[[Any], Any]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: function(updates))


def _multiplied(init: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiply the gradients by slots that never change."""
    return optax.GradientTransformation(
        init,
        lambda g, slots, params=None: (jax.tree.map(jnp.multiply, g, slots), slots),
    )


def _by_name(factor: Callable[[str], float]) -> optax.GradientTransformation:
    return _every(lambda updates: {k: g * factor(k) for k, g in updates.items()})


_ELEMENTWISE: dict[str, Make] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "nadam": lambda: optax.nadam(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, centered=True, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "adabelief": lambda: optax.adabelief(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "optimistic": lambda: optax.optimistic_gradient_descent(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "injected_schedule": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.cosine_decay_schedule(0.1, 10)
    ),
    "clip": lambda: optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "decay": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    "exponential": lambda: optax.sgd(optax.exponential_decay(0.5, 2, 0.5)),
    "cosine": lambda: optax.adam(optax.warmup_cosine_decay_schedule(0, 0.1, 2, 9)),
    "piecewise": lambda: optax.sgd(optax.piecewise_constant_schedule(0.1, {3: 0.5})),
    "slots_of_bfloat16": lambda: optax.adam(0.1, mu_dtype=jnp.bfloat16),
    "nothing": lambda: optax.identity(),
    "one_more": lambda: _each(jnp.ones_like),
    "jitted": lambda: _each(jax.jit(lambda g: -g)),
}

_OTHERS: dict[str, Make] = {
    "global_norm": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "block_norm": lambda: optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "masked": lambda: optax.adamw(0.1, mask={k: k == "w" for k in _MODEL}),
    "masked_by_shape": lambda: optax.adamw(
        0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    ),
    "lamb": lambda: optax.lamb(0.1),
    "lars": lambda: optax.lars(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "noise": lambda: optax.add_noise(0.1, 0.5, key=jax.random.key(0)),
    "several_steps": lambda: optax.MultiSteps(
        optax.sgd(0.1), 2
    ).gradient_transformation(),
    "by_label": lambda: optax.multi_transform(
        {"fast": optax.sgd(0.2), "slow": optax.sgd(0.1)},
        {k: "fast" if k == "w" else "slow" for k in _MODEL},
    ),
    "slots_by_label": lambda: optax.multi_transform(
        {"plain": optax.sgd(0.1), "adam": optax.adam(0.1)},
        {k: "adam" if k == "w" else "plain" for k in _MODEL},
    ),
    "name_in_update": lambda: _by_name(lambda name: 0.1 if name == "b" else 0.2),
    "name_in_init": lambda: _multiplied(
        lambda params: {k: jnp.full_like(p, ord(k)) for k, p in params.items()}
    ),
    "shape_in_update": lambda: _each(lambda g: g / max(g.size, 1)),
    "shape_in_init": lambda: _multiplied(
        lambda params: jax.tree.map(lambda p: jnp.full_like(p, p.size), params)
    ),
    "mean": lambda: _each(lambda g: g - g.mean()),
    "largest": lambda: _each(lambda g: g / g.max(initial=1.0)),
    "backwards": lambda: _each(lambda g: jnp.flip(g)),
    "cumulative": lambda: _each(lambda g: jnp.cumsum(g).reshape(g.shape)),
    "numbered": lambda: _each(
        lambda g: g * jnp.arange(g.size, dtype=g.dtype).reshape(g.shape)
    ),
    "constant_array": lambda: _every(lambda g: {**g, "b": g["b"] * np.arange(4.0)}),
    "of_another": lambda: _every(lambda g: {**g, "w": g["w"] * g["s"]}),
    "swapped": lambda: _every(lambda g: {**g, "s": g["s"] + g["b"][0]}),
    "shared_by_a_scalar": lambda: optax.GradientTransformation(
        lambda params: jnp.zeros(()), lambda g, slot, params=None: (g, g["s"])
    ),
    "slots_of_another_shape": lambda: optax.GradientTransformation(
        lambda params: {k: jnp.zeros(5) for k in params},
        lambda g, slots, params=None: (g, slots),
    ),
    "table_without_names": lambda: optax.GradientTransformation(
        lambda params: jnp.zeros(5), lambda g, slots, params=None: (g, slots)
    ),
}


@pytest.mark.parametrize("make", _ELEMENTWISE.values(), ids=list(_ELEMENTWISE))
def test_a_rule_that_treats_all_elements_alike_is_elementwise(make: Make) -> None:
    """A scalar among them; a count, a rate or the loss may be shared."""
    assert _says(make())


@pytest.mark.parametrize("make", _OTHERS.values(), ids=list(_OTHERS))
def test_a_rule_that_tells_elements_or_arrays_apart_is_not(make: Make) -> None:
    """Run on arrays laid end to end it would compute something else."""
    assert not _says(make())


@pytest.mark.parametrize("names", ["w", "s", "e", "sb", "we"])
def test_few_variables_are_enough_to_tell(names: str) -> None:
    """A norm of one scalar is one, and of an empty array too."""
    model = {**_MODEL, "e": np.ones((0, 2), np.float32)}
    variables = {name: model[name] for name in names}
    clip = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))

    said = [_says(rule, variables) for rule in (optax.adam(0.1), clip)]

    assert said == [True, False]


_MIXED: Arrays = {
    f"{kind.__name__} {number}": np.ones(number, kind)
    for number in (1, 3)
    for kind in (np.float16, ml_dtypes.bfloat16, np.float32)
}


@pytest.mark.parametrize(
    "rule",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(0.1),
        _each(lambda g: g * (2 if g.dtype == np.float16 else 3)),
        _multiplied(
            lambda params: jax.tree.map(
                lambda p: jnp.full_like(p, p.dtype.itemsize), params
            )
        ),
    ],
    ids=["momentum", "adam", "factor", "slots"],
)
def test_arrays_of_different_types_may_be_treated_differently(rule: Any) -> None:
    """They are never laid end to end."""
    assert _says(rule, _MIXED)


def test_one_array_among_its_type_that_differs_is_enough() -> None:
    """All but one of six are treated alike, and that one has an equal of its type."""
    odd = list(_MIXED)[-1]

    assert not _says(_by_name(lambda name: 2.0 if name == odd else 3.0), _MIXED)


def test_a_tiny_difference_between_two_constants_is_one() -> None:
    """The two neighbours of float32 look the same with six digits."""
    one, next_one = np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))

    def rule(other: np.float32) -> optax.GradientTransformation:
        return _by_name(lambda name: float(other if name == "b" else one))

    assert [_says(rule(other)) for other in (one, next_one)] == [True, False]


def test_the_loss_is_shared_by_all() -> None:
    """A rate that follows it is every element's; its sum with one array is not."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return jax.tree.map(lambda g: g * value, updates), value

    rule = optax.GradientTransformationExtraArgs(
        lambda params: jnp.zeros((), jnp.float32), update
    )

    assert _says(rule)


@pytest.mark.parametrize(
    "name", ["learning_rate", "count", "mu", "0", "w*", "ⅷ", "a/b['c']"]
)
def test_a_variable_may_have_any_name(name: str) -> None:
    """Also one that a rule gives to a part of its own slots, or that looks like it."""
    variables = {"x": np.ones(2, np.float32), name: np.ones((2, 2), np.float32)}

    said = [_says(rule, variables) for rule in (optax.adam(0.1), optax.lamb(0.1))]

    assert said == [True, False]


def test_a_thousand_variables_are_told_like_two() -> None:
    """One that differs among them is found."""
    variables = {
        f"{number:03d}": np.ones((number % 7, 3), np.float32) for number in range(1000)
    }

    def factor(name: str) -> float:
        return 2.0 if name == "638" else 1.0

    rules = (optax.sgd(0.1, momentum=0.9), _by_name(factor))

    assert [_says(rule, variables) for rule in rules] == [True, False]


def test_the_question_computes_nothing() -> None:
    """Programs are read, never run: a callback in one is not called."""
    called = []

    def look(numbers: Any) -> Any:
        called.append(numbers)
        return numbers

    rule = _each(lambda g: jax.pure_callback(look, g, g))

    assert not _says(rule)
    assert called == []
