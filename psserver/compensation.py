"""Delay compensation at work: the snapshots that it needs, and the compiled formula."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psserver.gradients import is_finite
from psserver.model import Model, Push
from psserver.policies.compensation import (
    DelayCompensation,
    adapted,
    compensated,
    mean_square,
)
from psserver.presence import Masks, Presence
from psserver.rules import State
from pswire.body import Body
from pswire.encoding import PLAIN
from pswire.errors import NonFiniteError
from pswire.segments import Segment

Parts = tuple[Any, ...]
"""An array for each of the rule's segments."""


class Compensation:
    """Compensates the pushes of one model; whoever owns it guards all but `prepare`.

    The gradients that it makes are the push from then on: what is logged of it, say.
    They come of a program of their own, so that the rule's is the same when a log is
    replayed.

    Attributes:
        kept: {step: the trainable variables at it}: the newest, without a gap.
    """

    def __init__(
        self,
        policy: DelayCompensation,
        limit: int,
        model: Model,
        kept: Mapping[int, Parts],
    ) -> None:
        """Begin with some snapshots, and no mean square.

        Args:
            policy: How to compensate.
            limit: The largest staleness that is applied, in steps: so many snapshots
                are kept, and that of the newest step.
            model: Whose pushes.
            kept: Of the newest step and those right before it.
        """
        self._policy = policy
        self._count = max(0, limit) + 1
        self._model = model
        self._presence = Presence(model.rule.segments, elementwise=True)
        self._prepared = set[bool]()
        self.kept = dict(kept)
        self._trim()
        self._squares = self._no_squares()

    @property
    def oldest(self) -> int:
        """The oldest step that a push may have been computed from."""
        return next(iter(self.kept))

    def compensate(self, push: Push, now: Parts) -> tuple[Push, Parts | None]:
        """Return a push as if it had been computed now, and the mean squares then.

        A fresh one is returned as it is.

        Args:
            push: Of a step that is kept.
            now: The trainable variables that it is about to change.

        Raises:
            NonFiniteError: It would no longer be finite; nothing has changed.
        """
        rule, read = self._model.rule, self.kept[push.header.step_read]
        if read is now and self._squares is None:
            return push, None
        present = self._model.present(push.header)
        masks = None if present is None else self._presence.masks(present)
        with rule.precision():
            parts, squares = _run(
                *(tuple(rule.parts(push.gradients)), now, read),
                *(self._squares, masks, self._policy.strength),
            )
        _require_finite(rule.segments, parts, "compensated gradient")
        if squares is not None:
            _require_finite(rule.segments, squares, "mean square of gradients")
        return (push if read is now else self._replaced(push, parts)), squares

    def stepped(self, step: int, variables: Parts, squares: Parts | None) -> None:
        """Note a step.

        Args:
            step: The newest, one more than the last.
            variables: The trainable ones at it.
            squares: What `compensate` has returned; None: they stay.
        """
        self.kept[step] = variables
        self._trim()
        if squares is not None:
            self._squares = squares

    def roll_back(self, step: int, variables: Parts) -> None:
        """Forget the steps after one, which is the newest again; the mean squares too.

        Args:
            step: That step.
            variables: The trainable ones at it.
        """
        older = {n: parts for n, parts in self.kept.items() if n < step}
        self.kept = older | {step: variables}
        self._squares = self._no_squares()

    def prepare(self, state: State, *, some: bool) -> None:
        """Compile for pushes of a kind; see `CompiledRule.prepare`.

        Args:
            state: The rule's, of any step.
            some: Whether they bring some variables, not all.
        """
        rule, now = self._model.rule, state.variables
        zeros = tuple(rule.parts(Body.zeros(self._model.layout.trainable)))
        masks = self._presence.masks(frozenset()) if some else None
        with rule.precision():
            jax.block_until_ready(
                _run(zeros, now, now, self._squares, masks, self._policy.strength)
            )
        self._prepared.add(some)

    def is_prepared(self, *, some: bool) -> bool:
        """Say whether pushes of a kind need not wait; see `prepare`."""
        return some in self._prepared

    def _trim(self) -> None:
        while len(self.kept) > self._count:
            del self.kept[self.oldest]

    def _no_squares(self) -> Parts | None:
        if not self._policy.adaptive:
            return None
        with self._model.rule.precision():
            return tuple(map(_zeros, self.kept[self.oldest]))

    def _replaced(self, push: Push, parts: Parts) -> Push:
        """Return a push with other gradients; what it has not brought is zero there."""
        trainable = self._model.layout.trainable
        gradients = self._model.rule.gradients(map(np.asarray, parts))
        layout = push.header.layout or trainable
        sent = gradients if layout == trainable else Body.gather(layout, gradients)
        header = replace(push.header, encoding=PLAIN, nbytes=layout.nbytes)
        return replace(push, header=header, received=sent, gradients=gradients)


@jax.jit
def _run(
    gradients: Parts,
    now: Parts,
    read: Parts,
    squares: Parts | None,
    masks: Masks | None,
    strength: Any,
) -> tuple[Parts, Parts | None]:
    """Return compensated gradients, and the mean squares with them if there are any."""
    wide = tuple(part.astype(_wide(part.dtype)) for part in gradients)
    strengths: Sequence[Any] = [strength] * len(wide)
    if squares is not None:
        masked = masks or (True,) * len(wide)
        squares = tuple(
            jnp.where(mask, mean_square(square, part), square)
            for mask, square, part in zip(masked, squares, wide, strict=True)
        )
        strengths = [adapted(strength, square) for square in squares]
    parts = zip(gradients, wide, now, read, strengths, strict=True)
    return tuple(_compensated(*part) for part in parts), squares


def _compensated(gradient: Any, wide: Any, now: Any, read: Any, strength: Any) -> Any:
    kind = wide.dtype
    there = compensated(wide, now.astype(kind), read.astype(kind), strength)
    # Infinite variables, as masks have them, have no difference.
    return jnp.where(now == read, gradient, there.astype(gradient.dtype))


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _zeros(part: Any) -> Any:
    zeros = np.zeros(part.shape, _wide(part.dtype))
    return jax.device_put(zeros, jax.local_devices(backend="cpu")[0])


def _require_finite(segments: Sequence[Segment], parts: Parts, what: str) -> None:
    for segment, part in zip(segments, map(np.asarray, parts), strict=True):
        if is_finite(part):
            continue
        for name, array in segment.cut(part).items():
            if not is_finite(array):
                raise NonFiniteError(
                    f"{name}: expected a finite {what}, got an overflow from finite "
                    "gradients"
                )
