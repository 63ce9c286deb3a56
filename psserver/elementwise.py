"""Whether a rule treats every element alike, whatever array it is in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from pswire.layout import HasShape

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

Function = Callable[..., Any]


class _NotElementwiseError(Exception):
    """The program does something else, or nobody knows."""


def is_elementwise(
    init: Function, update: Function, variables: Mapping[str, HasShape]
) -> bool:
    """Say whether arrays laid end to end would be updated as they are one by one.

    It reads the programs that JAX makes of the rule for these very variables: the same
    operations in the same order for every array of one type, each elementwise, and
    what all arrays share, a count or a learning rate, computed from nothing but what
    is shared. A rule with a global norm, a mask or noise is not like that.

    Args:
        init: The rule's: variables -> slots.
        update: (variables, slots, gradients, value) -> (variables, slots).
        variables: Their names, shapes and dtypes; slots are told by the names.
    """
    like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in variables.items()}
    reader = _Reader(like)
    try:
        slots = reader.read(init, (like,))
        reader.read(update, (like, slots, like, jnp.float32(0)))
    except _NotElementwiseError:
        return False
    return True


class _Value:
    """What a program computes: `formula` numbers how, `owner` says of which array."""

    __slots__ = ("formula", "owner")

    def __init__(self, formula: int, owner: str | None) -> None:
        self.formula = formula
        self.owner = owner


class _Reader:
    """Reads programs over one set of variables; equal formulas get equal numbers."""

    def __init__(self, variables: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        self._variables = variables
        self._elementwise = frozenset(_ELEMENTWISE.split())
        self._formulas: dict[object, int] = {}

    def read(self, function: Function, arguments: tuple[Any, ...]) -> Any:
        """Check one function, and return the form of its result.

        Raises:
            _NotElementwiseError: It is not elementwise, or not the same for all.
        """
        program, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        inputs = [
            _Value(self._number("input", role, leaf.dtype), owner)
            for role, owner, leaf in self._leaves(arguments)
        ]
        outputs = self._run(program.jaxpr, program.consts, inputs)
        self._require_same(result, outputs)
        return result

    def _require_same(self, result: Any, outputs: Sequence[_Value]) -> None:
        of_array: dict[str, set[object]] = {name: set() for name in self._variables}
        for (role, owner, _), value in zip(self._leaves(result), outputs, strict=True):
            if value.owner not in (None, owner):
                raise _NotElementwiseError
            if owner is not None:
                of_array[owner].add((role, value.formula))
        of_dtype: dict[object, set[object]] = {}
        for name, formulas in of_array.items():
            if of_dtype.setdefault(self._variables[name].dtype, formulas) != formulas:
                raise _NotElementwiseError

    def _leaves(self, tree: Any) -> list[tuple[object, str | None, Any]]:
        return [
            (*self._place(path, leaf), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]

    def _place(self, path: tuple[Any, ...], leaf: Any) -> tuple[object, str | None]:
        """Return a leaf's place in its tree, the array's name apart."""
        names = [str(getattr(key, "key", "")) for key in path]
        owners = [name for name in names if name in self._variables]
        role = tuple(
            "*" if n in self._variables else str(k)
            for n, k in zip(names, path, strict=True)
        )
        if not owners and leaf.shape == ():
            return role, None
        if len(owners) != 1 or leaf.shape != self._variables[owners[0]].shape:
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
