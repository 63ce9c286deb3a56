"""An optax rule, compiled for one set of variables."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from pswire.errors import InternalError, InvalidRequestError, NonFiniteError

Arrays = Mapping[str, npt.NDArray[Any]]
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
                new_variables, new_slots, sound = jax.block_until_ready(
                    self._update(_lend(variables), slots, _lend(gradients), loss)
                )
            except Exception as error:
                _log.exception("the rule failed")
                raise InternalError(
                    f"rule: failed with {type(error).__name__}: {error}"
                ) from error
        if not sound:
            raise NonFiniteError(
                f"{_culprit(variables, new_variables)}: expected a finite result of "
                "the rule, got an overflow from finite gradients"
            )
        # On a CPU this is a view: nothing is copied.
        return {name: np.asarray(a) for name, a in new_variables.items()}, new_slots

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
    ) -> tuple[Any, Slots, Any]:
        extra = {"value": value} if self.needs_value else {}
        updates, new_slots = self._rule.update(gradients, slots, variables, **extra)
        new_variables = optax.apply_updates(variables, updates)
        new_slots = jax.tree.map(jnp.asarray, new_slots)  # Plain numbers are slots too.
        sound = _stays_finite((variables, slots), (new_variables, new_slots))
        return new_variables, new_slots, sound

    def _warm_up(self, variables: Arrays) -> None:
        before = _lend(variables)
        zeros = jax.tree.map(jnp.zeros_like, before)
        slots = self.init(variables)
        # Some rules change their slots' types in the first update, which compiles anew.
        for _ in range(2):
            _, slots, _ = self._update(before, slots, zeros, np.float32(1))

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


def _stays_finite(before: Any, after: Any) -> Any:
    """Say whether no number has become NaN or infinite that was not so before."""
    old, new = map(jax.tree.leaves, (before, after))
    same_shapes = len(old) == len(new) and all(
        o.shape == n.shape for o, n in zip(old, new, strict=True)
    )
    if not same_shapes:  # A rule that reshapes its slots: judge them by themselves.
        old = [jnp.zeros(n.shape) for n in new]
    return jnp.all(
        jnp.asarray(
            [
                jnp.all(jnp.isfinite(n) | ~jnp.isfinite(o))
                for o, n in zip(old, new, strict=True)
                if jnp.issubdtype(n.dtype, jnp.inexact)
            ]
        )
    )


def _culprit(before: Arrays, after: Mapping[str, Any]) -> str:
    for name, array in after.items():
        if bool((~np.isfinite(np.asarray(array)) & np.isfinite(before[name])).any()):
            return name
    return "slots"
