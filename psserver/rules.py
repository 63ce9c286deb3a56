"""An optax rule, compiled for one set of variables."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from psserver.gradients import is_finite
from pswire.body import Arrays
from pswire.errors import InternalError, InvalidRequestError, NonFiniteError

Slots = Any
"""A rule's state: a pytree that only the rule understands."""

_log = logging.getLogger("psserver")

# It moved out of `jax.experimental` in jax 0.8.
_x64_home: Any = jax if hasattr(jax, "enable_x64") else jax.experimental


def require_rule(rule: object) -> optax.GradientTransformationExtraArgs:
    """Check that something is an optax rule, and make it take extra arguments.

    Raises:
        ValueError: It is none; a factory such as `optax.adam` has to be called first.
    """
    if not isinstance(rule, optax.GradientTransformation):
        name = getattr(rule, "__name__", type(rule).__name__)
        raise ValueError(
            "rule: expected an optax gradient transformation such as "
            f"optax.adam(1e-3), got {name}"
        )
    return optax.with_extra_args_support(rule)


class CompiledRule:
    """One rule for one set of trainable variables: pure, with no state of its own.

    Everything runs on the CPU, where the variables are, whatever else JAX finds;
    64-bit arithmetic is on if, and only if, a variable is of float64.
    """

    def __init__(
        self, rule: optax.GradientTransformationExtraArgs, variables: Arrays
    ) -> None:
        """Compile the rule, so that the first push need not.

        Raises:
            InvalidRequestError: The rule cannot run on these variables, or needs what
                a parameter server does not have.
        """
        self._rule = rule
        self._x64 = any(a.dtype == np.float64 for a in variables.values())
        with self._environment():
            self.needs_value = _needs_value(rule, variables)
            self._update = jax.jit(self._traced_update)
            self._warm_up(variables)

    def init(self, variables: Arrays) -> Slots:
        """Return the slots for variables that no push has changed yet."""
        with self._environment():
            return self._rule.init(_lend(variables))

    def apply(
        self, variables: Arrays, slots: Slots, gradients: Arrays, value: float | None
    ) -> tuple[dict[str, npt.NDArray[Any]], Slots]:
        """Run the rule once, and return the new variables and slots.

        Args:
            variables: {name: array}, of the shapes and dtypes compiled for.
            slots: From `init` or an earlier call.
            gradients: {name: array}, like the variables.
            value: The loss; None: unknown.

        Raises:
            InvalidRequestError: The rule needs the loss, and there is none.
            NonFiniteError: The rule would make a finite number NaN or infinite.
            InternalError: The rule failed.
        """
        loss = self._loss(value)
        with self._environment():
            try:
                changed, new_slots = jax.block_until_ready(
                    self._update(_lend(variables), slots, _lend(gradients), loss)
                )
            except Exception as error:
                _log.exception("the rule failed")
                raise InternalError(
                    f"rule: failed with {type(error).__name__}: {error}"
                ) from error
        # On a CPU these are views: nothing is copied.
        new_variables = {name: np.asarray(array) for name, array in changed.items()}
        _require_finite(variables, new_variables)
        _require_finite(_numbers(slots), _numbers(new_slots))
        return new_variables, new_slots

    def _loss(self, value: float | None) -> np.float32:
        if not self.needs_value:
            return np.float32(0)
        with np.errstate(over="ignore"):
            loss = np.float32(math.nan if value is None else value)
        if not np.isfinite(loss):
            raise InvalidRequestError(
                f"value: expected the loss, which this rule needs, got {value}"
            )
        return loss

    def _traced_update(
        self, variables: Any, slots: Slots, gradients: Any, value: Any
    ) -> tuple[Any, Slots]:
        extra = {"value": value} if self.needs_value else {}
        updates, new_slots = self._rule.update(gradients, slots, variables, **extra)
        return optax.apply_updates(variables, updates), new_slots

    def _warm_up(self, variables: Arrays) -> None:
        before = _lend(variables)
        zeros = jax.tree.map(jnp.zeros_like, before)
        slots = self.init(variables)
        # Some rules change their slots' types in the first update, which compiles anew.
        for _ in range(2):
            _, slots = self._update(before, slots, zeros, np.float32(1))

    @contextmanager
    def _environment(self) -> Iterator[None]:
        cpu = jax.local_devices(backend="cpu")[0]
        with jax.default_device(cpu), _x64_home.enable_x64(self._x64):
            yield


def _lend(arrays: Arrays) -> dict[str, jax.Array]:
    """Pass arrays to JAX, which reads their memory where it is aligned.

    A compiled function would take them as they are, but then it copies them, and the
    copies live until Python next looks for cycles: several models' worth of memory.
    """
    return jax.device_put(dict(arrays), may_alias=True)


def _needs_value(
    rule: optax.GradientTransformationExtraArgs, variables: Arrays
) -> bool:
    """Find out, without computing anything, whether `update` takes the loss."""

    def update(tree: Any, **extra: Any) -> Any:
        return rule.update(tree, rule.init(tree), tree, **extra)

    failures = []
    for extra in ({}, {"value": jnp.float32(0.0)}):
        try:
            jax.eval_shape(lambda tree, extra=extra: update(tree, **extra), variables)
        except Exception as error:
            failures.append(error)
        else:
            return bool(extra)
    raise InvalidRequestError(
        "rule: expected one that needs the gradients, the variables and at most the "
        f"loss as `value`, got {type(failures[-1]).__name__}: {failures[-1]}"
    ) from failures[-1]


def _require_finite(before: Arrays, after: Arrays) -> None:
    """Check that no number has become NaN or infinite that was not so before.

    Some rules keep infinities among their slots on purpose, as a best loss so far.
    """
    for name, array in after.items():
        if is_finite(array):
            continue
        spoilt, old = ~np.isfinite(array), before.get(name)
        if old is not None and old.shape == array.shape:
            spoilt &= np.isfinite(old)
        if spoilt.any():
            raise NonFiniteError(
                f"{name}: expected a finite result of the rule, got an overflow from "
                "finite gradients"
            )


def _numbers(slots: Slots) -> Arrays:
    """Name the slots that may overflow: not counts, and not random keys."""
    return {
        f"slots{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slots)
        if jnp.issubdtype(jnp.result_type(leaf), np.inexact)
    }
