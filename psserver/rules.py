"""An optax rule, compiled for one set of variables."""

import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from psserver.checkpoint import Slots
from psserver.elementwise import is_elementwise
from psserver.gradients import is_finite
from psserver.presence import Masks, Presence
from psserver.rowrule import RowRule, Scalars
from psserver.rulefaults import failures_told, require_finite
from psserver.slots import SlotNames, Tree
from pswire.body import Arrays, Body, Bytes
from pswire.errors import InvalidRequestError
from pswire.heap import give_back_freed_memory
from pswire.layout import HasShape, Layout
from pswire.segments import Segment, segments

_SMALL = 2**14  # Elements: so few are sooner looked through by numpy.

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


class State(NamedTuple):
    """What a rule changes, as JAX keeps it; a step makes a new one.

    Attributes:
        variables: The trainable variables, one array a segment.
        slots: The rule's own state of them.
    """

    variables: tuple[jax.Array, ...]
    slots: Tree


class CompiledRule:
    """One rule for variables of one layout: pure, once it has started.

    JAX takes some microseconds for every array that it is given, so milliseconds for
    a thousand. An elementwise rule therefore runs on whole segments of the body, as if
    each were one array. Any other has to see the arrays as they are: the compiled
    function cuts them out of the segments, and joins them again.

    Everything runs on the CPU, where the variables are, whatever else JAX finds;
    64-bit arithmetic is on if, and only if, a variable is of float64.
    """

    def __init__(
        self, rule: optax.GradientTransformationExtraArgs, layout: Layout
    ) -> None:
        """Read the rule; `start` compiles it.

        Raises:
            InvalidRequestError: The rule cannot run on these variables, or needs what
                a parameter server does not have; or there is a table, and it does not
                treat every element alike.
        """
        self._rule = rule
        self._trainable = layout.dense.trainable
        self._x64 = any(spec.dtype == np.float64 for spec in layout.trainable)
        trainable = {
            spec.name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
            for spec in layout.trainable
        }
        whole = segments(layout.dense, apart=False)
        self._flat = {
            i: jax.ShapeDtypeStruct((s.size,), s.dtype) for i, s in enumerate(whole)
        }
        tables = {
            len(whole) + i: jax.ShapeDtypeStruct((prod(s.shape),), s.dtype)
            for i, s in enumerate(layout.tables)
        }
        with self.precision():
            self.needs_value = _needs_value(rule, trainable)
            self._elementwise = is_elementwise(
                rule.init, self._step, trainable, self._flat | tables
            )
            self._update = jax.jit(self._traced_update)
        if tables and not self._elementwise:
            raise InvalidRequestError(
                f"{layout.tables[0].name}: expected a rule that treats every element "
                "alike, as tables need, got one that does not"
            )
        self._segments = whole if self._elementwise else segments(layout, apart=True)
        size = sum(segment.size for segment in self._segments)
        self._small = self._elementwise and size <= _SMALL
        self._names = SlotNames(self._segments, elementwise=self._elementwise)
        self._presence = Presence(self._segments, elementwise=self._elementwise)
        # The kinds, as `prepare` takes them.
        self._prepared = {(False, False)}
        self._overflowing: list[bool] = []  # Of the leaves of a state, once it started.

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of the variables that are one array each in a `State`."""
        return self._segments

    def start(self, variables: Body, slots: Slots | None = None) -> State:
        """Take over variables, without a copy.

        The rule is compiled here, so that the first push need not wait for it.

        Args:
            variables: All of them.
            slots: From `slots`, of the same step; None: no push has changed the
                variables yet.

        Raises:
            ValueError: The slots are those of another rule; the message begins with
                the name of one that is amiss.
        """
        cpu = jax.local_devices(backend="cpu")[0]
        parts = tuple(s.of_variables(variables) for s in self._segments)
        with self.precision():
            arrays = jax.device_put(parts, cpu, may_alias=True)
            with jax.default_device(cpu):
                tree = self._rule.init(self._tree(arrays))
            # Committed to the CPU, all that comes of them will stay there.
            first = State(arrays, jax.device_put(tree, cpu))
            self._overflowing = [_overflows(leaf) for leaf in jax.tree.leaves(first)]
            after = self._compile(first, 1.0, None)
            if slots is not None:
                first = State(
                    arrays, self._names.put((first.slots, after.slots), slots)
                )
        del after
        give_back_freed_memory()  # A model's worth, and what the compiler took.
        return first

    def prepare(self, state: State, *, weighed: bool, some: bool) -> None:
        """Compile for pushes of a kind, so that the first one need not wait for it.

        Args:
            state: From `start` or `apply`.
            weighed: Whether they have a factor.
            some: Whether they bring some variables, not all.
        """
        if self.is_prepared(weighed=weighed, some=some):
            return
        with self.precision():
            self._compile(
                state,
                0.5 if weighed else 1.0,
                self._presence.masks(frozenset()) if some else None,
            )
        self._prepared.add((weighed, some))
        give_back_freed_memory()

    def is_prepared(self, *, weighed: bool, some: bool) -> bool:
        """Say whether pushes of a kind need not wait; see `prepare`."""
        return (weighed, some) in self._prepared

    def apply(
        self,
        state: State,
        gradients: Body,
        value: float | None,
        factor: float = 1.0,
        present: Set[str] | None = None,
    ) -> State:
        """Run the rule once, and return what comes of it; `state` stays as it was.

        Args:
            state: From `start` or an earlier call.
            gradients: Of all trainable variables, in their layout, in one run.
            value: The loss; None: unknown.
            factor: What the rule's update, which is added to the variables, is
                multiplied by, in float32 or better; its slots know nothing of it.
            present: The names of the variables that the push brings; the others, whose
                gradients are zero, and their slots stay as they are. None: all.

        Raises:
            InvalidRequestError: The rule needs the loss, and there is none.
            NonFiniteError: The rule would make a finite number NaN or infinite.
            InternalError: The rule failed.
        """
        loss = self.loss(value)
        masks = None if present is None else self._presence.masks(present)
        with self.precision(), failures_told():
            parts = tuple(self.parts(gradients))
            new, sound = self._update(state, parts, loss, self._factor(factor), masks)
            # Either waits for the rule, which may still fail.
            is_sound = self._are_finite(new) if sound is None else bool(sound)
        if not is_sound:
            require_finite(self._variables(state), self._variables(new))
            require_finite(self.slots(state).arrays, self.slots(new).arrays)
        return new

    def for_rows(self) -> RowRule:
        """Return the same rule for rows of tables."""
        return RowRule(self._rule.init, self._step, self._flat, self.precision)

    def scalars(self, value: float | None, factor: float) -> Scalars:
        """Return what it takes of a push beside arrays; see `apply`."""
        return Scalars(self.loss(value), self._factor(factor))

    def let_go(self) -> None:
        """Free the memory of what has been replaced, before more is taken.

        JAX drops what it was lent only when Python looks for garbage, be it so little.
        """
        if not self._small:
            gc.collect(0)

    def parts(self, gradients: Body) -> Iterator[npt.NDArray[Any]]:
        """Yield the gradients of each segment, as one array, without a copy."""
        return (segment.of_gradients(gradients) for segment in self._segments)

    def gradients(self, parts: Iterable[npt.NDArray[Any]]) -> Body:
        """Return the gradients that `parts` makes these of, without a copy."""
        pairs = zip(self._segments, parts, strict=True)
        runs = [(s.gradient_start, s.bytes_of(part)) for s, part in pairs]
        return Body(self._trainable, runs)

    def runs(self, state: State) -> Iterator[tuple[int, Bytes]]:
        """Yield the trainable variables as runs of the variables' body."""
        for segment, array in zip(self._segments, state.variables, strict=True):
            yield segment.start, segment.bytes_of(np.asarray(array))

    def slots(self, state: State) -> Slots:
        """Return what the rule remembers, without a copy."""
        return self._names.take(state.slots)

    def loss(self, value: float | None) -> np.float32 | None:
        """Return the loss as the rule takes it; None: it needs none.

        Args:
            value: It, as a push has told it.

        Raises:
            InvalidRequestError: The rule needs it, and there is none.
        """
        if not self.needs_value:
            return None
        with np.errstate(over="ignore"):
            loss = np.float32(math.nan if value is None else value)
        if not np.isfinite(loss):
            raise InvalidRequestError(
                f"value: expected the loss, which this rule needs, got {value}"
            )
        return loss

    def _factor(self, factor: float) -> np.floating[Any] | None:
        # A program of its own has none: were it always there, the compiler could not
        # join the rule's last multiplication and the addition of its result, and so
        # would round twice where it rounds once.
        if factor == 1.0:
            return None
        return np.float64(factor) if self._x64 else np.float32(factor)

    def _compile(self, state: State, factor: float, masks: Masks | None) -> State:
        """Compile for pushes with a factor or without, of some variables or of all.

        Some rules change their slots' types in the first update, which compiles anew.

        Returns:
            What comes of such a push.
        """
        zeros = tuple(self.parts(Body.zeros(self._trainable)))
        for _ in range(2):
            before = state
            # Waited for: two results at once would be one more than ever needed.
            state, _ = jax.block_until_ready(
                self._update(before, zeros, self.loss(1.0), self._factor(factor), masks)
            )
            if _types(state) == _types(before):
                break
        return state

    def _traced_update(
        self,
        state: State,
        gradients: Any,
        value: Any,
        factor: Any,
        masks: Masks | None,
    ) -> tuple[State, jax.Array | None]:
        variables, parts = self._tree(state.variables), self._tree(gradients)
        changed, slots = self._step(variables, state.slots, parts, value, factor)
        if masks is not None:
            changed = self._presence.keep(masks, variables, changed)
            slots = self._presence.keep(masks, state.slots, slots)
        new = State(self._arrays(changed), slots)
        if self._small:
            return new, None
        sound = [
            _seems_finite(leaf) for leaf in jax.tree.leaves(new) if _overflows(leaf)
        ]
        return new, jnp.stack(sound).all()

    def _are_finite(self, state: State) -> bool:
        leaves = zip(jax.tree.leaves(state), self._overflowing, strict=True)
        return all(
            is_finite(np.asarray(leaf)) for leaf, overflows in leaves if overflows
        )

    def _step(
        self,
        variables: Any,
        slots: Tree,
        gradients: Any,
        value: Any,
        factor: Any = None,
    ) -> tuple[Any, Tree]:
        extra = {"value": value} if self.needs_value else {}
        updates, new_slots = self._rule.update(gradients, slots, variables, **extra)
        if factor is not None:
            updates = jax.tree.map(lambda update: _scaled(update, factor), updates)
        return optax.apply_updates(variables, updates), new_slots

    def _tree(self, parts: Any) -> Any:
        """Return what the rule sees of the segments' arrays."""
        pairs = zip(self._segments, parts, strict=True)
        if self._elementwise:
            return {number: part for number, (_, part) in enumerate(pairs)}
        return {k: v for segment, part in pairs for k, v in segment.cut(part).items()}

    def _arrays(self, tree: Any) -> tuple[jax.Array, ...]:
        """Return the segments' arrays from what the rule makes of its view of them."""
        if self._elementwise:
            return tuple(tree[number] for number in range(len(self._segments)))
        return tuple(segment.join(tree) for segment in self._segments)

    def _variables(self, state: State) -> Arrays:
        pairs = zip(self._segments, state.variables, strict=True)
        cuts = (segment.cut(np.asarray(part)) for segment, part in pairs)
        return {name: array for cut in cuts for name, array in cut.items()}

    def precision(self) -> AbstractContextManager[Any]:
        """Let JAX compute as the variables need it, meanwhile."""
        now = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        if now == self._x64:
            return nullcontext()
        return _x64_home.enable_x64(self._x64)


def _needs_value(
    rule: optax.GradientTransformationExtraArgs, variables: Mapping[str, HasShape]
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


def _scaled(update: jax.Array, factor: jax.Array) -> jax.Array:
    kind = jnp.promote_types(update.dtype, jnp.float32)
    return (update.astype(kind) * factor.astype(kind)).astype(update.dtype)


def _types(state: State) -> list[Any]:
    return [leaf.aval for leaf in jax.tree.leaves(state)]


def _overflows(leaf: Any) -> bool:
    """Say whether it is one of numbers that may: no count, and no random key."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _seems_finite(array: Any) -> jax.Array:
    """Say, within a compiled function, whether all is finite; false alarms are rare."""
    # A dot product is not fused into what makes the array, and so takes a fourth of
    # the time of any other reduction. Large squares overflow: then one looks closer.
    flat = array.reshape(-1)
    kind = jnp.promote_types(flat.dtype, jnp.float32)
    return jnp.isfinite(jnp.dot(flat, flat, preferred_element_type=kind))
