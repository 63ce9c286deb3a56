"""Rules by name: `adam`, `optax:contrib.muon` or `my_module:my_rule`."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pswire.imports import load

Value = float | int | bool | str | None

_OPTAX = "optax:"

# They look for their own step size by evaluating the loss, which only workers can.
_LINE_SEARCHES = frozenset(
    {"lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"}
)


def parse_arguments(pairs: Sequence[str]) -> dict[str, Value]:
    """Read `name=value` pairs; a value that is no Python literal is a string.

    Raises:
        ValueError: A pair has another form, or a name stands twice.
    """
    arguments: dict[str, Value] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"argument: expected name=value, got {pair!r}")
        if name in arguments:
            raise ValueError(f"{name}: expected once, got twice")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def resolve(
    name: str, arguments: Mapping[str, Value]
) -> optax.GradientTransformationExtraArgs:
    """Make the rule that a name and its arguments stand for.

    A factory's numbers become slots (`optax.inject_hyperparams`), so that they can be
    seen, saved and set; whole numbers, flags and names stay what they are.

    Args:
        name: A name in optax, `optax:` and a name in optax, or `module:attribute`,
            which names a rule or a function that returns one.
        arguments: What to call the factory with.

    Raises:
        ValueError: There is no such rule, or it does not take these arguments.
    """
    target = _target(name)
    if target.removeprefix(_OPTAX) in _LINE_SEARCHES:
        raise ValueError(
            f"{name}: expected a rule that needs gradients alone, got one that "
            "evaluates the loss, which only workers can"
        )
    found = load(target)
    if isinstance(found, optax.GradientTransformation):
        if arguments:
            raise ValueError(
                f"{name}: expected no arguments, which only a factory takes, "
                f"got {', '.join(arguments)}"
            )
        return optax.with_extra_args_support(found)
    if not callable(found):
        raise ValueError(
            f"{name}: expected an optax rule or a function that returns one, "
            f"got {type(found).__name__}"
        )
    return _make(name, found, arguments)


def canonical(name: str, arguments: Mapping[str, Value]) -> str:
    """Return what to call a rule, which is the same however it was asked for.

    Args:
        name: One that `resolve` has taken.
        arguments: With these.
    """
    target = _target(name)
    parameters = inspect.signature(load(target)).parameters if arguments else {}
    told = ", ".join(
        f"{argument}={_number(_parameter(parameters, argument), value)!r}"
        for argument, value in sorted(arguments.items())
    )
    return target.removeprefix(_OPTAX) + (f"({told})" if told else "")


def _target(name: str) -> str:
    return name if ":" in name else f"{_OPTAX}{name}"


def _make(
    name: str, factory: Callable[..., Any], arguments: Mapping[str, Value]
) -> optax.GradientTransformationExtraArgs:
    signature = inspect.signature(factory)
    try:
        signature.bind_partial(**arguments)  # Names what is unknown before what lacks.
        bound = signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise ValueError(
            f"{name}: expected arguments among {known}, got a call with {error}"
        ) from None
    bound.apply_defaults()
    given = {
        parameter: _number(_parameter(signature.parameters, parameter), value)
        for parameter, value in arguments.items()
    }
    try:
        rule = factory(**given)
    except Exception as error:
        raise ValueError(
            f"{name}: expected to be made of {dict(arguments)}, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(rule, optax.GradientTransformation):
        raise ValueError(
            f"{name}: expected it to return an optax rule, got {type(rule).__name__}"
        )
    if not arguments.keys() <= signature.parameters.keys():
        return optax.with_extra_args_support(
            rule
        )  # Optax injects none of `**settings`.
    static = [
        parameter
        for parameter, value in {**bound.arguments, **given}.items()
        if not isinstance(value, float)
    ]
    # In the variables' own type 0.999 would be 1 where that type is bfloat16.
    inject = optax.inject_hyperparams(factory, static, hyperparam_dtype=float)
    injected = inject(**given)
    return injected if _runs(injected) else optax.with_extra_args_support(rule)


def _parameter(
    parameters: Mapping[str, inspect.Parameter], name: str
) -> inspect.Parameter:
    """Find a parameter; what `**settings` takes has none of its own."""
    return parameters.get(name) or inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY
    )


def _number(parameter: inspect.Parameter, value: Value) -> Value:
    """Read the 1 of `learning_rate=1` as the float that it is meant to be."""
    empty = inspect.Parameter.empty
    required = parameter.default is empty
    if isinstance(value, str) and (
        type(parameter.default) is float
        or (required and parameter.annotation not in (str, "str", empty))
    ):
        raise ValueError(f"{parameter.name}: expected a number, got {value!r}")
    meant = required or type(parameter.default) is float
    return float(value) if type(value) is int and meant else value


def _runs(injected: optax.GradientTransformationExtraArgs) -> bool:
    """Say whether a factory bears that its numbers are arrays: a few branch on them."""
    variables = {"w": jnp.zeros(2)}

    def update(tree: Any) -> Any:
        state = injected.init(tree)
        return injected.update(tree, state, tree, value=jnp.float32(1.0))

    try:
        jax.eval_shape(update, variables)
    except jax.errors.ConcretizationTypeError:
        return False
    except Exception:  # Not these variables, then: it is judged by the real ones.
        return True
    return True
