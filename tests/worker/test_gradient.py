"""A loss function, differentiated and compiled once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psworker.gradient import differentiate, takes_rng


def _plain(params: Any, batch: Any) -> Any:
    return jnp.sum(params["w"] * batch)


def _noisy(params: Any, batch: Any, rng: Any) -> Any:
    return jnp.sum(params["w"] * jax.random.normal(rng, batch.shape))


def test_the_value_is_the_loss_and_the_gradients_have_the_params_form() -> None:
    """The loss is linear, so the gradient is the batch itself."""
    params = {"w": jnp.asarray([1.0, 2.0])}

    value, gradients = differentiate(_plain)(params, jnp.asarray([3.0, 4.0]), None)

    assert value == 11.0
    np.testing.assert_array_equal(gradients["w"], [3.0, 4.0])


def test_a_loss_with_a_parameter_rng_gets_the_key() -> None:
    """The gradient is the noise that the loss drew, so the key is the one given."""
    params, batch = {"w": jnp.ones(3)}, jnp.zeros(3)
    keys = jax.random.split(jax.random.key(7))

    gradients = [differentiate(_noisy)(params, batch, key)[1] for key in keys]

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

    (value, aux), gradients = differentiate(loss, has_aux=True)(
        {"w": jnp.ones(2)}, jnp.asarray([3.0, 4.0]), None
    )

    assert (value, aux["seen"]) == (7.0, 2)
    np.testing.assert_array_equal(gradients["w"], [3.0, 4.0])


def test_integers_and_bools_have_float0_gradients() -> None:
    """JAX's mark for what cannot be differentiated; such leaves are never pushed."""

    def loss(params: Any, batch: Any) -> Any:
        return jnp.where(params["on"], params["count"], 0) * _plain(params, batch)

    params = {"w": jnp.ones(2), "count": jnp.int32(3), "on": jnp.asarray(True)}

    _, gradients = differentiate(loss)(params, jnp.ones(2), None)

    float0 = {name: leaf.dtype == jax.dtypes.float0 for name, leaf in gradients.items()}
    assert float0 == {"w": False, "count": True, "on": True}
    np.testing.assert_array_equal(gradients["w"], [3.0, 3.0])


def test_a_function_is_compiled_once() -> None:
    """A loss runs in Python only while JAX traces it, so the runs are counted."""
    traces = []

    def loss(params: Any, batch: Any) -> Any:
        traces.append(batch.shape)
        return _plain(params, batch)

    for _ in range(3):
        differentiate(loss)({"w": jnp.ones(2)}, jnp.ones(2), None)

    assert traces == [(2,)]
