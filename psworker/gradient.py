"""A loss function, differentiated and compiled for variables that come as bytes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pswire import trees
from pswire.body import Body
from pswire.errors import VariableMismatchError
from pswire.layout import Layout
from pswire.rows import Rows
from pswire.segments import segments
from pswire.trees import Form
from psworker.choice import chosen


class Compute(Protocol):
    """A loss function, differentiated."""

    def __call__(
        self,
        variables: Body,
        batch: Any,
        rng: Any,
        cotangent: Any = None,
        rows: Mapping[str, Rows] = MappingProxyType({}),
    ) -> tuple[Any, Any]: ...


def differentiate(
    loss: Callable[..., Any], like: Any, *, has_aux: bool = False, variables: Any = None
) -> Compute:
    """Return a compiled function of (variables, batch, rng, cotangent, rows).

    It returns what `loss` does, and the gradients of the chosen variables: a `Body` or,
    if there are rows of tables among them, a dict in which the gradients of these are
    `Rows`, each row once.

    Args:
        loss: `loss(params, batch)`, or with a third parameter named `rng`. Compiled
            once: pass the same function every time.
        like: A pytree of the form that `loss` takes, or its `jax.eval_shape`.
        has_aux: Whether it returns its value and something else beside it.
        variables: Which of them; see `chosen`. The others are constants.

    Raises:
        VariableMismatchError: A leaf of the template is no array, or there are no such
            variables. The function returned raises it where the variables are not like
            the template.
        ValueError: (The function returned.) The loss is no scalar and there is no
            cotangent, or that has another shape.
        TypeError: (The function returned.) It is called while JAX traces.
    """
    form = Form.of(like)
    names = chosen(variables, form.layout)

    def compute(
        variables: Body,
        batch: Any,
        rng: Any,
        cotangent: Any = None,
        rows: Mapping[str, Rows] = MappingProxyType({}),
    ) -> tuple[Any, Mapping[str, Any]]:
        tables = frozenset(rows)
        flat = _flat(loss, has_aux, form, variables.layout, names, tables)
        return flat(variables, batch, rng, cotangent, rows)

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
        self,
        loss: Callable[..., Any],
        has_aux: bool,
        form: Form,
        layout: Layout,
        names: frozenset[str],
        tables: frozenset[str],
    ) -> None:
        whole = (spec for spec in form.layout if spec.name not in tables)
        Layout(tuple(whole)).require(layout)
        self._form = form
        self._tables = [s for s in form.layout if s.name in tables & names]
        self._layout = Layout(tuple(spec for spec in layout if spec.name in names))
        self._segments = segments(self._layout, apart=True)
        self._loss = _with_optional_rng(loss)
        self._has_aux = has_aux
        self._compiled = jax.jit(self._traced)

    def __call__(
        self,
        variables: Body,
        batch: Any,
        rng: Any,
        cotangent: Any,
        rows: Mapping[str, Rows],
    ) -> tuple[Any, Mapping[str, Any]]:
        leaves = [
            rows[name].values if name in rows else variables[name]
            for name in self._form.layout.places
        ]
        result, gradients, of_rows = self._compiled(leaves, batch, rng, cotangent)
        trees.require_concrete("loss", gradients)
        runs = []
        for segment, run in zip(self._segments, jax.device_get(gradients), strict=True):
            if run.dtype != segment.dtype:
                raise VariableMismatchError(
                    f"{segment.arrays[0][0].name}: expected a gradient of "
                    f"{segment.dtype}, got {run.dtype}, since jax_enable_x64 is off"
                )
            runs.append((segment.gradient_start, run.view(np.uint8)))
        body = Body(self._layout, runs)
        if not self._tables:
            return result, body
        found = zip(self._tables, jax.device_get(of_rows), strict=True)
        return result, {
            **body,
            **{s.name: Rows(rows[s.name].ids, got).summed(s) for s, got in found},
        }

    def _traced(
        self, leaves: list[jax.Array], batch: Any, rng: Any, cotangent: Any
    ) -> Any:
        named = dict(zip(self._form.layout.places, leaves, strict=True))
        tables = [spec.name for spec in self._tables]
        chosen = {name: named[name] for name in (*self._layout.places, *tables)}

        def loss(chosen: dict[str, jax.Array]) -> Any:
            params = self._form.build((named | chosen).values())
            result = self._loss(params, batch, rng)
            return result if self._has_aux else (result, None)

        value, pull_back, aux = jax.vjp(loss, chosen, has_aux=True)
        (gradients,) = pull_back(_cotangent(cotangent, value))
        joined = [segment.join(gradients) for segment in self._segments]
        result = (value, aux) if self._has_aux else value
        return result, joined, [gradients[name] for name in tables]


_flat = functools.lru_cache(maxsize=16)(_Flat)


def _with_optional_rng(loss: Callable[..., Any]) -> Callable[..., Any]:
    if takes_rng(loss):
        return lambda params, batch, rng: loss(params, batch, rng=rng)
    return lambda params, batch, rng: loss(params, batch)


def _cotangent(cotangent: Any, value: Any) -> jax.Array:
    """Return what the gradient is pulled back from, checked against the loss."""
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        got = value.dtype if hasattr(value, "dtype") else type(value).__name__
        raise ValueError(f"loss: expected a floating-point array, got {got}")
    if cotangent is None and value.shape:
        raise ValueError(
            "loss: expected a scalar, or a cotangent of the same shape, "
            f"got shape {value.shape}"
        )
    given = jnp.asarray(1 if cotangent is None else cotangent, value.dtype)
    if given.shape != value.shape:
        raise ValueError(
            f"cotangent: expected shape {value.shape}, as the loss has, "
            f"got {given.shape}"
        )
    return given
