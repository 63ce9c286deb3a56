"""What a script calls that was written for TensorFlow 1."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pswire.errors import VariableMismatchError
from psworker.compat import AggregationMethod, Optimizer

PARAMS = {"a": np.asarray([1.0, 2.0], np.float32), "b": np.float32(3.0)}


def loss(params: Any, batch: Any) -> Any:
    """A loss whose gradient is the batch, and twice that."""
    return batch * (jnp.sum(params["a"]) + 2 * params["b"])


def test_the_arguments_are_those_of_the_ancestor() -> None:
    """By name, order and default; the batch alone is new, and only by name."""
    methods = ("compute_gradients", "apply_gradients", "minimize")
    given = [
        *("var_list", "gate_gradients", "aggregation_method"),
        "colocate_gradients_with_ops",
    ]

    found = {
        name: list(inspect.signature(getattr(Optimizer, name)).parameters)[1:]
        for name in methods
    }

    assert found == {
        "compute_gradients": ["loss", *given, "grad_loss", "batch"],
        "apply_gradients": ["grads_and_vars", "global_step", "name"],
        "minimize": ["loss", "global_step", *given, "name", "grad_loss", "batch"],
    }


def test_gradients_are_computed_changed_and_applied(offline: Any) -> None:
    """With the step that they were read at, whatever has become of the pairs."""
    client, recorder = offline(PARAMS)
    optimizer = Optimizer(client)
    recorder.step = 4

    pairs = optimizer.compute_gradients(loss, batch=2.0)
    recorder.step = 7
    verdict = optimizer.apply_gradients((g * 10, name) for g, name in pairs)

    assert [name for _, name in pairs] == ["a", "b"]
    assert (verdict.applied, verdict.staleness) == (True, 3)
    (header,), (sent,) = recorder.headers, recorder.sent
    assert (header.step_read, header.value) == (4, 18.0)
    assert (sent["a"].tolist(), sent["b"]) == ([20.0, 20.0], 40.0)


def test_gradients_of_several_computations_are_as_old_as_the_oldest(
    offline: Any,
) -> None:
    """A script that adds them up itself keeps no step; each applying begins anew."""
    client, recorder = offline(PARAMS)
    optimizer = Optimizer(client)

    for step in (3, 5, 6):
        recorder.step = step
        pairs = optimizer.compute_gradients(loss, batch=1.0)
    optimizer.apply_gradients(pairs)
    optimizer.apply_gradients(optimizer.compute_gradients(loss, batch=1.0))
    optimizer.compute_gradients(loss, batch=1.0)
    recorder.generation, recorder.step = "second", 1
    optimizer.apply_gradients(optimizer.compute_gradients(loss, batch=1.0))

    read = [(header.generation, header.step_read) for header in recorder.headers]
    assert read == [("first", 3), ("first", 7), ("second", 1)]


def test_minimize_takes_all_that_computing_does(offline: Any) -> None:
    """Chosen variables, and a loss that is no scalar."""
    client, recorder = offline(PARAMS)

    verdict = Optimizer(client, like=PARAMS).minimize(
        lambda params, batch: params["a"] ** 2 * batch,
        var_list=["a"],
        gate_gradients=Optimizer.GATE_GRAPH,
        aggregation_method=AggregationMethod.EXPERIMENTAL_TREE,
        colocate_gradients_with_ops=True,
        name="train",
        grad_loss=[1.0, 10.0],
        batch=3.0,
    )

    assert verdict.applied
    assert [sent["a"].tolist() for sent in recorder.sent] == [[6.0, 120.0]]
    assert list(recorder.sent[0]) == ["a"]


@pytest.mark.parametrize(
    "settings",
    [
        *({"gate_gradients": gate} for gate in (0, 1, 2)),
        *({"aggregation_method": method} for method in (None, 0, 1, 2)),
        *({"colocate_gradients_with_ops": either} for either in (True, False)),
    ],
    ids=str,
)
def test_what_has_no_meaning_in_jax_changes_nothing(
    offline: Any, settings: dict[str, Any]
) -> None:
    """TensorFlow's own numbers will do."""
    client, recorder = offline(PARAMS)

    Optimizer(client).minimize(loss, batch=1.0, **settings)

    assert recorder.sent[0]["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gate_gradients": 3},
            "gate_gradients: expected GATE_NONE, .* got 3; in JAX all gradients are th",
        ),
        (
            {"aggregation_method": 3},
            "aggregation_method: expected one of .* got 3; in JAX the compiler adds gr",
        ),
        (
            {"colocate_gradients_with_ops": "gpu"},
            "colocate_gradients_with_ops: expected a bool, got 'gpu'; in JAX a gradie",
        ),
        (
            {"global_step": 7},
            "global_step: expected None, as the server counts the steps, got 7",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unknown_value_is_told_what_it_means_in_jax(
    offline: Any, settings: dict[str, Any], message: str
) -> None:
    """Nothing is pushed."""
    client, recorder = offline(PARAMS)

    with pytest.raises(ValueError, match=f"^{message}"):
        Optimizer(client).minimize(loss, batch=1.0, **settings)

    assert recorder.headers == []


def test_gradients_that_nobody_has_computed_are_not_applied(offline: Any) -> None:
    """Their step would have to be guessed; it is used once, too."""
    client, recorder = offline(PARAMS)
    optimizer = Optimizer(client)
    pairs = optimizer.compute_gradients(loss, batch=1.0)
    optimizer.apply_gradients(pairs)

    with pytest.raises(ValueError, match=r"^apply_gradients: expected compute_grad"):
        optimizer.apply_gradients(pairs)

    assert len(recorder.headers) == 1


def test_gradients_that_were_refused_can_be_applied_once_they_are_right(
    offline: Any,
) -> None:
    """What was computed is still known, with its step."""
    client, recorder = offline(PARAMS)
    optimizer = Optimizer(client)
    recorder.step = 4
    pairs = optimizer.compute_gradients(loss, batch=2.0)

    with pytest.raises(VariableMismatchError, match=r"^c: expected one of a, b"):
        optimizer.apply_gradients([(pairs[0][0], "c")])

    optimizer.apply_gradients(pairs)
    assert [header.step_read for header in recorder.headers] == [4]
