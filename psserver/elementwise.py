"""Whether a rule treats every element alike, whatever array it is in."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

# Each computes an element of its result from the same element of its operands.
_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne
neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt
square sub tan tanh xor
"""
# Each runs a program of its own, of which one of the parameters holds the text.
_CALLS = {"pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "remat"}
_TEXTS = ("jaxpr", "call_jaxpr")

_log = logging.getLogger("psserver")

Function = Callable[..., Any]


class _NotElementwiseError(Exception):
    """The program does something else, or nobody knows."""


Shapes = Mapping[Any, jax.ShapeDtypeStruct]


def is_elementwise(
    init: Function, update: Function, variables: Shapes, segments: Shapes
) -> bool:
    """Say whether a rule does to segments what it does to the variables in them.

    It reads the programs that JAX makes of the rule, for the variables and for the
    segments: the same operations in the same order for every array of one type, each
    elementwise, and what all arrays share, a count or a learning rate, computed from
    nothing but what is shared. A rule with a global norm, a mask or noise is not like
    that, and neither is one that looks at the arrays' names, shapes or number.

    Args:
        init: The rule's: variables -> slots.
        update: (variables, slots, gradients, value) -> (variables, slots).
        variables: By name; slots are told by the names.
        segments: Likewise; all variables of one type are in segments of that type.
    """
    formulas: dict[object, int] = {}
    try:
        apart = _Reader(variables, formulas).read_rule(init, update)
        together = _Reader(segments, formulas).read_rule(init, update)
    except _NotElementwiseError:
        return False
    except Exception as error:
        # A rule made for these variables need not run on anything else.
        _log.debug(
            "the rule runs on the variables one by one: %s",
            error,
            extra={"event": "rule_runs_apart", "error": str(error)},
        )
        return False
    return apart == together


class _Value:
    """What a program computes: `formula` numbers how, `owner` says of which array."""

    __slots__ = ("formula", "owner")

    def __init__(self, formula: int, owner: Any) -> None:
        self.formula = formula
        self.owner = owner


class _Reader:
    """Reads programs over one set of arrays; equal formulas get equal numbers."""

    def __init__(self, arrays: Shapes, formulas: dict[object, int]) -> None:
        self._arrays = arrays
        self._elementwise = frozenset(_ELEMENTWISE.split())
        self._formulas = formulas

    def read_rule(self, init: Function, update: Function) -> object:
        """Return what the rule computes: for all arrays, and for each type of them.

        Raises:
            _NotElementwiseError: It is not elementwise, or not the same for all.
        """
        arrays = dict(self._arrays)
        slots, first = self._read(init, (arrays,))
        _, further = self._read(update, (arrays, slots, arrays, jnp.float32(0)))
        return first, further

    def _read(self, function: Function, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the form of a function's result, and how it is computed."""
        program, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        inputs = [
            _Value(self._number("input", role, leaf.dtype), owner)
            for role, owner, leaf in self._leaves(arguments)
        ]
        outputs = self._run(program.jaxpr, program.consts, inputs)
        return result, self._by_dtype(result, outputs)

    def _by_dtype(
        self, result: Any, outputs: Sequence[_Value]
    ) -> dict[object, set[object]]:
        of_array: dict[Any, set[object]] = {key: set() for key in self._arrays}
        shared: set[object] = set()
        for (role, owner, _), value in zip(self._leaves(result), outputs, strict=True):
            if value.owner not in (None, owner):
                raise _NotElementwiseError
            formulas = shared if owner is None else of_array[owner]
            formulas.add((role, value.formula))
        of_dtype: dict[object, set[object]] = {None: shared}
        for key, formulas in of_array.items():
            array = self._arrays[key]
            # JAX computes an array of no elements in a way of its own.
            if array.size and of_dtype.setdefault(array.dtype, formulas) != formulas:
                raise _NotElementwiseError
        return of_dtype

    def _leaves(self, tree: Any) -> list[tuple[object, Any, Any]]:
        return [
            (*self._place(path, leaf), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]

    def _place(self, path: tuple[Any, ...], leaf: Any) -> tuple[object, Any]:
        """Return a leaf's place in its tree, the array's name apart."""
        keys = [getattr(entry, "key", None) for entry in path]
        owners = [key for key in keys if key in self._arrays]
        role = tuple(
            "*" if key in self._arrays else str(entry)
            for key, entry in zip(keys, path, strict=True)
        )
        if not owners and leaf.shape == ():
            return role, None
        if len(owners) != 1 or leaf.shape != self._arrays[owners[0]].shape:
            raise _NotElementwiseError
        return role, owners[0]

    def _run(
        self, program: jex.Jaxpr, consts: Sequence[Any], inputs: Sequence[_Value]
    ) -> list[_Value]:
        known: dict[Any, _Value] = dict(zip(program.invars, inputs, strict=True))
        for variable, const in zip(program.constvars, consts, strict=True):
            known[variable] = self._constant(const)

        def value(atom: Any) -> _Value:
            if isinstance(atom, jex.Literal):
                return self._constant(atom.val)
            return known[atom]

        for step in program.eqns:
            operands = [value(atom) for atom in step.invars]
            known.update(zip(step.outvars, self._step(step, operands), strict=True))
        return [value(atom) for atom in program.outvars]

    def _step(self, step: jex.JaxprEqn, operands: Sequence[_Value]) -> list[_Value]:
        name = step.primitive.name
        if name in _CALLS:
            inner = next(step.params[key] for key in _TEXTS if key in step.params)
            return self._run(inner.jaxpr, inner.consts, operands)
        if name == "broadcast_in_dim" and _is_spread(step, operands[0]):
            return [operands[0]]
        owners = {operand.owner for operand in operands} - {None}
        if len(owners) > 1 or name not in self._elementwise:
            raise _NotElementwiseError
        params = str(sorted(step.params.items()))
        formula = self._number(name, params, *(o.formula for o in operands))
        return [_Value(formula, owners.pop() if owners else None)]

    def _constant(self, value: Any) -> _Value:
        if jnp.shape(value) != ():
            raise _NotElementwiseError
        return _Value(
            self._number("constant", str(value), jnp.result_type(value)), None
        )

    def _number(self, *formula: object) -> int:
        return self._formulas.setdefault(formula, len(self._formulas))


def _is_spread(step: jex.JaxprEqn, operand: _Value) -> bool:
    """Say whether all elements become one scalar, which is no single array's."""
    before: Any = step.invars[0].aval
    after: Any = step.outvars[0].aval
    return before.shape == () and (operand.owner is None or after.shape == ())
