"""A loss function, differentiated and compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax


@functools.lru_cache(maxsize=16)
def differentiate(
    loss: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """Return a compiled function of (params, batch, rng) to (value, gradients).

    The value is what `loss` returns. The gradients have the form of params; integers
    and bools among the params have float0 gradients, which are never pushed.

    Args:
        loss: `loss(params, batch)`, or with a third parameter named `rng`. Compiled
            once: pass the same function every time.
        has_aux: Whether it returns a scalar and something else beside it.
    """
    with_rng = takes_rng(loss)

    def call(params: Any, batch: Any, rng: Any) -> Any:
        return loss(params, batch, rng=rng) if with_rng else loss(params, batch)

    return jax.jit(jax.value_and_grad(call, has_aux=has_aux, allow_int=True))


def takes_rng(loss: Callable[..., Any]) -> bool:
    """Say whether a loss function wants a random key."""
    return "rng" in inspect.signature(loss).parameters
