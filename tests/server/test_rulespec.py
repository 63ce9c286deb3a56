"""Rules by name: found, called with arguments, their numbers made slots."""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from psserver.rules import CompiledRule
from psserver.rulespec import Value, canonical, parse_arguments, resolve
from pswire.body import Body
from pswire.layout import Layout

_MODULE = """
import optax

ready = optax.sgd(0.5)
number = 3


def make(scale, power=2):
    return optax.scale(-scale * power)


def plain():
    return optax.sgd(0.25)


def loose(**settings):
    return optax.sgd(settings["rate"])


def wrong():
    return 3.5


class zoo:
    inner = optax.sgd(2.0)
"""

_NEED_THE_LOSS_FUNCTION = {"sophia"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module of rules, `my_rules`, where it can be imported."""
    (tmp_path / "my_rules.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def _first_update(rule: optax.GradientTransformationExtraArgs) -> list[float]:
    variables = {"w": jnp.asarray([1.0, -2.0])}
    updates: Any
    updates, _ = rule.update(variables, rule.init(variables), variables)
    return np.asarray(updates["w"]).tolist()


def _hyperparams(rule: optax.GradientTransformationExtraArgs) -> dict[str, float]:
    state: Any = rule.init({"w": jnp.zeros(2)})
    return {name: float(value) for name, value in state.hyperparams.items()}


def _factories(module: ModuleType, prefix: str) -> list[str]:
    """Name the functions that need a learning rate and nothing else."""
    names = []
    for name, found in vars(module).items():
        if inspect.isfunction(found) and not name.startswith("_"):
            parameters = inspect.signature(found).parameters.values()
            required = [p.name for p in parameters if p.default is p.empty]
            if required == ["learning_rate"] and name not in _NEED_THE_LOSS_FUNCTION:
                names.append(prefix + name)
    return sorted(names)


@pytest.mark.parametrize(
    ("pair", "name", "value"),
    [
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("steps=100", "steps", 100),
        ("offset=-1", "offset", -1),
        ("nesterov=True", "nesterov", True),
        ("momentum=None", "momentum", None),
        ("mu_dtype=bfloat16", "mu_dtype", "bfloat16"),
        ("name='1'", "name", "1"),
        ("text=a=b", "text", "a=b"),
        ("text=", "text", ""),
        ("betas=(0.9, 0.99)", "betas", (0.9, 0.99)),
        ("harmless=__import__('os')", "harmless", "__import__('os')"),
    ],
)
def test_a_value_is_a_literal_or_else_a_string(
    pair: str, name: str, value: object
) -> None:
    """Nothing is evaluated: a call is only a strange string."""
    arguments = parse_arguments([pair])

    assert arguments == {name: value}
    assert type(arguments[name]) is type(value)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["learning_rate"], "argument: expected name=value, got 'learning_rate'"),
        (["=1"], "argument: expected name=value, got '=1'"),
        (["1x=2"], "argument: expected name=value, got '1x=2'"),
        (["a b=2"], "argument: expected name=value, got 'a b=2'"),
        ([""], "argument: expected name=value, got ''"),
        (["b1=0.9", "b1=0.8"], "b1: expected once, got twice"),
    ],
)
def test_an_argument_of_another_form_is_refused(pairs: list[str], message: str) -> None:
    """Of two values for one name neither can be the one that was meant."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_arguments(pairs)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("sgd", {"learning_rate": 0.5}, [-0.5, 1.0]),
        ("optax:sgd", {"learning_rate": 0.5}, [-0.5, 1.0]),
        ("optax:contrib.sophia", {"learning_rate": 0.0}, None),
        ("contrib.muon", {"learning_rate": 0.1}, None),
        ("identity", {}, [1.0, -2.0]),
        ("my_rules:ready", {}, [-0.5, 1.0]),
        ("my_rules:plain", {}, [-0.25, 0.5]),
        ("my_rules:loose", {"rate": 0.25}, [-0.25, 0.5]),
        ("my_rules:make", {"scale": 0.25}, [-0.5, 1.0]),
        ("my_rules:make", {"scale": 1, "power": 3}, [-3.0, 6.0]),
        ("my_rules:zoo.inner", {}, [-2.0, 4.0]),
    ],
)
def test_a_rule_is_found_by_its_name(
    name: str, arguments: dict[str, Value], expected: list[float] | None
) -> None:
    """In optax, in its modules, and in a module of one's own: a rule or a factory."""
    rule = resolve(name, arguments)

    assert isinstance(rule, optax.GradientTransformationExtraArgs)
    if expected is not None:
        assert _first_update(rule) == expected


@pytest.mark.parametrize(
    "name", [*_factories(optax, ""), *_factories(optax.contrib, "contrib.")]
)
@pytest.mark.filterwarnings("ignore:Specifying a key will be required:UserWarning")
@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
def test_whatever_needs_only_a_learning_rate_is_a_rule(name: str) -> None:
    """Every such function of optax, also with a whole number for the rate."""
    variables = {"w": jnp.ones((2, 2))}

    rule = resolve(name, {"learning_rate": 1})
    updates, _ = jax.eval_shape(
        lambda tree: rule.update(tree, rule.init(tree), tree, value=1.0), variables
    )

    assert updates["w"].shape == (2, 2)
    assert _hyperparams(rule)["learning_rate"] == 1.0


def test_a_factorys_numbers_are_slots_and_change_nothing() -> None:
    """They can be seen and saved, and the rule is still optax's."""
    rule = resolve("adam", {"learning_rate": 0.25, "b1": 0.5})

    assert _hyperparams(rule) == pytest.approx(
        {"learning_rate": 0.25, "b1": 0.5, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    )
    plain: Any = optax.adam(0.25, b1=0.5)
    assert _first_update(rule) == pytest.approx(_first_update(plain), rel=1e-5)


def test_a_whole_number_is_read_as_the_float_that_is_meant() -> None:
    """But not where the factory itself has a whole number: that is a count."""
    rule = resolve(
        "adafactor",
        {"learning_rate": 0.5, "min_dim_size_to_factor": 2, "clipping_threshold": 2},
    )

    assert _hyperparams(rule)["learning_rate"] == 0.5
    assert _hyperparams(rule)["clipping_threshold"] == 2.0
    assert not {"min_dim_size_to_factor", "decay_offset"} & _hyperparams(rule).keys()
    assert _hyperparams(resolve("adam", {"learning_rate": 1, "b1": 0}))["b1"] == 0.0


def test_flags_names_and_nothing_stay_what_they_are() -> None:
    """Only numbers become slots."""
    arguments: dict[str, Value] = {
        "learning_rate": 0.1,
        "nesterov": True,
        "mu_dtype": "bfloat16",
    }

    state: Any = resolve("adam", arguments).init({"w": jnp.zeros(2)})

    assert state.hyperparams.keys() == {"learning_rate", "b1", "b2", "eps", "eps_root"}
    assert state.inner_state[0].mu["w"].dtype == jnp.bfloat16


def test_a_factory_that_branches_on_its_numbers_is_used_as_it_is() -> None:
    """`scale_by_sm3` asks whether its b2 is 1, which no traced array can answer."""
    rule = resolve("scale_by_sm3", {"b1": 0.5, "b2": 0.75})

    assert not hasattr(rule.init({"w": jnp.zeros(2)}), "hyperparams")
    plain: Any = optax.scale_by_sm3(b1=0.5, b2=0.75)
    assert _first_update(rule) == _first_update(plain)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("sgd", {"learning_rate": 0.5}, "sgd(learning_rate=0.5)"),
        ("optax:sgd", {"learning_rate": 0.5}, "sgd(learning_rate=0.5)"),
        ("optax:contrib.muon", {"learning_rate": 1}, "contrib.muon(learning_rate=1.0)"),
        ("adam", {"b1": 0, "learning_rate": 1.0}, "adam(b1=0.0, learning_rate=1.0)"),
        ("my_rules:loose", {"rate": 2}, "my_rules:loose(rate=2.0)"),
        ("identity", {}, "identity"),
        ("my_rules:ready", {}, "my_rules:ready"),
        (
            "my_rules:make",
            {"power": 3, "scale": 1},
            "my_rules:make(power=3, scale=1.0)",
        ),
    ],
)
def test_a_rule_is_called_the_same_however_it_was_asked_for(
    name: str, arguments: dict[str, Value], told: str
) -> None:
    """A data directory is of one rule, and tells it by that."""
    assert canonical(name, arguments) == told


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adm", {}, r"optax:adm: expected 'adm' in optax, got only .*\badam\b"),
        ("optax:adm", {}, r"optax:adm: expected 'adm' in optax, got only .*\badam\b"),
        ("qqqq", {}, r"optax:qqqq: expected 'qqqq' in optax, got nothing like it$"),
        ("no_such_module:rule", {}, r"no_such_module: expected a module in .*got none"),
        ("my_rules:redy", {}, r"my_rules:redy: expected 'redy' in my_rules, .* ready$"),
        ("my_rules:", {}, r"my_rules:: expected module:attribute, got 'my_rules:'$"),
        (":ready", {}, r":ready: expected module:attribute, got ':ready'$"),
        ("my_rules:number", {}, r"my_rules:number: expected an optax rule .*got int$"),
        ("my_rules:wrong", {}, r"my_rules:wrong: expected it to return .*got float$"),
        (
            "my_rules:ready",
            {"learning_rate": 0.1},
            r"my_rules:ready: expected no arguments, .*, got learning_rate$",
        ),
        (
            "adam",
            {},
            r"adam: expected arguments among learning_rate, b1, .*'learning_rate'$",
        ),
        (
            "adam",
            {"learning_rate": 0.1, "beta1": 0.9},
            r"adam: expected arguments among learning_rate, b1, .*'beta1'$",
        ),
        (
            "adam",
            {"learning_rate": "fast"},
            r"learning_rate: expected a number, got 'fast'$",
        ),
        (
            "adam",
            {"learning_rate": 0.1, "b1": "big"},
            r"b1: expected a number, got 'big'$",
        ),
        # What a factory says of its arguments names the rule, whatever it raises.
        ("adam", {"learning_rate": 0.1, "mu_dtype": "int7"}, r"adam: expected .*int7"),
        ("chain", {}, r"chain: expected .*"),
        ("lbfgs", {}, r"lbfgs: expected a rule that needs gradients alone, got one"),
        (
            "optax:scale_by_backtracking_linesearch",
            {"max_backtracking_steps": 3},
            r"optax:scale_by_backtracking_linesearch: expected a rule that needs",
        ),
    ],
)
def test_what_cannot_be_a_rule_is_refused_by_name(
    name: str, arguments: dict[str, Value], message: str
) -> None:
    """Always a ValueError, which the command turns into a usage error."""
    with pytest.raises(ValueError, match=f"^{message}"):
        resolve(name, arguments)


def test_an_error_inside_the_users_module_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is theirs to see: a module that it misses is not the one that was named."""
    (tmp_path / "my_broken.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        resolve("my_broken:rule", {})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_adams_numbers_survive_a_small_type(dtype: Any) -> None:
    """In bfloat16 its 0.999 would be 1, and its first update infinite."""
    variables = {"w": np.ones(4, dtype)}
    body = Body.gather(Layout.of(variables), variables)
    rule = CompiledRule(resolve("adam", {"learning_rate": 0.5}), body.layout)

    state = rule.apply(rule.start(body), body, None)

    changed = Body(body.layout, list(rule.runs(state)))

    assert changed["w"].dtype == dtype
    assert changed["w"].tolist() == pytest.approx([0.5] * 4, rel=1e-2)
