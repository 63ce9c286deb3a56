"""A loss function, differentiated and compiled once."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pswire import body, trees
from pswire.body import Body
from pswire.errors import VariableMismatchError
from pswire.layout import Layout
from psworker.gradient import differentiate, takes_rng


def _plain(params: Any, batch: Any) -> Any:
    return jnp.sum(params["w"] * batch)


def _noisy(params: Any, batch: Any, rng: Any) -> Any:
    return jnp.sum(params["w"] * jax.random.normal(rng, batch.shape))


def _body(params: Any, backwards: bool = False) -> Body:
    """Lay the arrays of a pytree out as a server would that had got them first."""
    arrays = trees.flatten(params)
    if backwards:
        arrays = dict(reversed(arrays.items()))
    return Body.gather(Layout.of(arrays), arrays)


def _compute(
    loss: Any, params: Any, batch: Any, rng: Any = None, **settings: Any
) -> tuple[Any, Body]:
    return differentiate(loss, params, **settings)(_body(params), batch, rng)


def test_the_value_is_the_loss_and_the_gradients_have_the_variables_names() -> None:
    """The loss is linear, so the gradient is the batch itself."""
    params = {"w": jnp.asarray([1.0, 2.0])}

    value, gradients = _compute(_plain, params, jnp.asarray([3.0, 4.0]))

    assert value == 11.0
    assert list(gradients) == ["w"]
    np.testing.assert_array_equal(gradients["w"], [3.0, 4.0])


def test_a_loss_with_a_parameter_rng_gets_the_key() -> None:
    """The gradient is the noise that the loss drew, so the key is the one given."""
    params, batch = {"w": jnp.ones(3)}, jnp.zeros(3)
    keys = jax.random.split(jax.random.key(7))

    gradients = [_compute(_noisy, params, batch, key)[1] for key in keys]

    for key, gradient in zip(keys, gradients, strict=True):
        np.testing.assert_array_equal(gradient["w"], jax.random.normal(key, (3,)))


@pytest.mark.parametrize(
    ("loss", "wants"),
    [
        (_plain, False),
        (_noisy, True),
        (jax.jit(_noisy), True),
        (lambda params, batch, *, rng=None: 0.0, True),
        (lambda params, batch, scale=1.0: 0.0, False),
    ],
    ids=["plain", "noisy", "compiled already", "keyword only", "another third"],
)
def test_who_wants_a_key_is_seen_by_the_name_rng(loss: Any, wants: bool) -> None:
    """Wrapped functions and keyword-only parameters count too."""
    found = takes_rng(loss)

    assert found is wants


def test_an_auxiliary_result_comes_beside_the_loss() -> None:
    """It is not differentiated, and keeps its own form."""

    def loss(params: Any, batch: Any) -> Any:
        return _plain(params, batch), {"seen": batch.size}

    (value, aux), gradients = _compute(
        loss, {"w": jnp.ones(2)}, jnp.asarray([3.0, 4.0]), has_aux=True
    )

    assert (value, aux["seen"]) == (7.0, 2)
    np.testing.assert_array_equal(gradients["w"], [3.0, 4.0])


def test_integers_and_bools_reach_the_loss_and_have_no_gradient() -> None:
    """They are among the variables, and not among what is pushed."""

    def loss(params: Any, batch: Any) -> Any:
        return jnp.where(params["on"], params["count"], 0) * _plain(params, batch)

    params = {"w": jnp.ones(2), "count": jnp.int32(3), "on": jnp.asarray(True)}

    _, gradients = _compute(loss, params, jnp.ones(2))

    assert list(gradients) == ["w"]
    np.testing.assert_array_equal(gradients["w"], [3.0, 3.0])


def test_a_function_is_compiled_once() -> None:
    """A loss runs in Python only while JAX traces it, so the runs are counted."""
    traces = []

    def loss(params: Any, batch: Any) -> Any:
        traces.append(batch.shape)
        return _plain(params, batch)

    for _ in range(3):
        _compute(loss, {"w": jnp.ones(2)}, jnp.ones(2))

    assert traces == [(2,)]


MIXED = {
    "a": [np.ones(3), np.ones((2, 2)), np.ones((0, 4)), np.ones(())],
    "b": {"half": np.ones(5), "brain": np.ones((3, 1)), "large": np.ones((300, 301))},
    "n": np.ones(7),
}
KINDS: dict[str, Any] = {
    "half": np.float16,
    "brain": ml_dtypes.bfloat16,
    "n": np.int8,
}


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_gradients_are_the_bytes_that_travel(backwards: bool) -> None:
    """Types, sizes and orders of any mix: what JAX alone makes, in the server's order.

    Nothing but zeros lies between two arrays, as the wire wants it.
    """

    def fill(path: Any, leaf: Any) -> Any:
        kind = KINDS.get(path[-1].key if hasattr(path[-1], "key") else "", np.float32)
        numbers = np.arange(leaf.size).reshape(leaf.shape) % 7 + len(path)
        return numbers.astype(kind)

    def loss(params: Any, batch: Any) -> Any:
        leaves = jax.tree.leaves(params)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves) * batch

    params = jax.tree_util.tree_map_with_path(fill, MIXED)
    variables = _body(params, backwards)

    _, gradients = differentiate(loss, params)(variables, jnp.float32(3), None)

    alone = jax.grad(loss, allow_int=True)(params, jnp.float32(3))
    expected = _body(alone, backwards)
    assert gradients.layout == variables.layout.trainable == expected.layout
    sent, made = (
        body.join(each.layout, each).tobytes() for each in (gradients, expected)
    )
    assert sent == made


def test_a_large_gradient_is_not_copied() -> None:
    """Its bytes are those that JAX has made, beside one run for all small ones."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2), "large": jnp.ones((300, 301))}

    def loss(params: Any, batch: Any) -> Any:
        return sum(jnp.sum(leaf * batch) for leaf in jax.tree.leaves(params))

    _, gradients = _compute(loss, params, jnp.float32(3))

    assert [(start, len(run)) for start, run in gradients.runs] == [
        (0, 64 + 2 * 4),
        (128, 300 * 301 * 4),
    ]


def test_variables_that_are_not_like_the_template_are_refused() -> None:
    """By the name of the first leaf that is amiss."""
    compute = differentiate(_plain, {"w": jnp.ones(2)})

    with pytest.raises(
        VariableMismatchError,
        match=r"^w: expected \(2,\) float32, got \(3,\) float32$",
    ):
        compute(_body({"w": jnp.ones(3)}), jnp.float32(1), None)


def test_a_template_that_is_none_is_refused() -> None:
    """Before there is anything to compute."""
    with pytest.raises(VariableMismatchError, match=r"^w: expected an array, got str$"):
        differentiate(_plain, {"w": "text"})


def test_a_gradient_of_less_precision_than_the_variable_is_refused() -> None:
    """JAX computes in 32 bits unless it is told otherwise."""
    params = {"n": np.int32(1), "w": np.ones(2)}

    with pytest.raises(
        VariableMismatchError,
        match=r"^w: expected a gradient of float64, got float32, since jax_enable_x64",
    ):
        _compute(_plain, params, jnp.float32(1))
