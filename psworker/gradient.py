"""A loss function, differentiated and compiled for variables that come as bytes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pswire.body import Body
from pswire.errors import VariableMismatchError
from pswire.layout import Layout
from pswire.segments import segments
from pswire.trees import Form

Compute = Callable[[Body, Any, Any], tuple[Any, Body]]
"""Takes the variables, a batch and a key to the loss and its gradients."""


def differentiate(
    loss: Callable[..., Any], like: Any, *, has_aux: bool = False
) -> Compute:
    """Return a compiled function of (variables, batch, rng) to (value, gradients).

    The value is what `loss` returns; the gradients are of all trainable variables.

    Args:
        loss: `loss(params, batch)`, or with a third parameter named `rng`. Compiled
            once: pass the same function every time.
        like: A pytree of the form that `loss` takes, or its `jax.eval_shape`.
        has_aux: Whether it returns a scalar and something else beside it.

    Raises:
        VariableMismatchError: A leaf of the template is no array. The function
            returned raises it where the variables are not like the template.
    """
    form = Form.of(like)

    def compute(variables: Body, batch: Any, rng: Any) -> tuple[Any, Body]:
        flat = _flat(loss, has_aux, form, variables.layout)
        return flat(variables, batch, rng)

    return compute


def takes_rng(loss: Callable[..., Any]) -> bool:
    """Say whether a loss function wants a random key."""
    return "rng" in inspect.signature(loss).parameters


class _Flat:
    """A gradient that comes as few large arrays, in the bytes that travel.

    JAX takes some microseconds for every array that it returns, so milliseconds for a
    thousand; joining them in the compiled function takes none. The variables are given
    one by one all the same: to cut them out there takes no time either, but XLA some
    20 ms for each array to compile.
    """

    def __init__(
        self, loss: Callable[..., Any], has_aux: bool, form: Form, layout: Layout
    ) -> None:
        form.layout.require(layout)
        self._form = form
        self._segments = segments(layout, apart=True)
        self._differentiated = jax.value_and_grad(
            _with_optional_rng(loss), has_aux=has_aux, allow_int=True
        )
        self._compiled = jax.jit(self._traced)

    def __call__(self, variables: Body, batch: Any, rng: Any) -> tuple[Any, Body]:
        leaves = [variables[name] for name in self._form.layout.places]
        value, gradients = self._compiled(leaves, batch, rng)
        runs = []
        for segment, run in zip(self._segments, jax.device_get(gradients), strict=True):
            if run.dtype != segment.dtype:
                raise VariableMismatchError(
                    f"{segment.arrays[0][0].name}: expected a gradient of "
                    f"{segment.dtype}, got {run.dtype}, since jax_enable_x64 is off"
                )
            runs.append((segment.gradient_start, run.view(np.uint8)))
        return value, Body(variables.layout.trainable, runs)

    def _traced(self, leaves: list[jax.Array], batch: Any, rng: Any) -> Any:
        value, tree = self._differentiated(self._form.build(leaves), batch, rng)
        gradients = self._form.name(tree)
        return value, [segment.join(gradients) for segment in self._segments]


_flat = functools.lru_cache(maxsize=16)(_Flat)


def _with_optional_rng(loss: Callable[..., Any]) -> Callable[..., Any]:
    if takes_rng(loss):
        return lambda params, batch, rng: loss(params, batch, rng=rng)
    return lambda params, batch, rng: loss(params, batch)
