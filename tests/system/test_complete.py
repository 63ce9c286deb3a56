"""Training goes on from a checkpoint as if there had been no break, bit for bit."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from psserver import admin

StartServer = Callable[..., psserver.Server]
NewestArrays = Callable[[Path], bytes]
Arrays = Mapping[str, npt.NDArray[Any]]

SEED = 12
NEVER = 10**9  # Steps, to the next checkpoint that nobody asks for.

FLOATS = {"w": np.ones((3, 5), np.float32), "b": np.zeros(7, np.float32)}
MIXED: Arrays = {
    "brain": np.ones((3, 3), ml_dtypes.bfloat16),
    "count": np.arange(5, dtype=np.int32),
    "double": np.ones(4, np.float64),
    "half": np.ones(7, np.float16),
    "mask": np.array([True, False, True]),
    "scalar": np.array(1.0, np.float32),
    "single": np.zeros((2, 9), np.float32),
}
LONG = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
}


AssertGoesOn = Callable[[optax.GradientTransformation, Arrays, int], None]


def train(server: psserver.Server, variables: Arrays, start: int, end: int) -> None:
    """Push from one step to another; between the same ones, the same gradients."""
    generator = np.random.default_rng([SEED, start])
    with psworker.connect(server.address) as client:
        client.initialize(variables)
        assert client.pull().step == start
        for step in range(start, end):
            gradients = {
                name: generator.standard_normal(array.shape).astype(array.dtype)
                for name, array in variables.items()
                if array.dtype.kind not in "ib"
            }
            assert client.push(gradients, step_read=step).applied


@pytest.fixture
def assert_goes_on(
    start_server: StartServer, tmp_path: Path, newest_arrays: NewestArrays
) -> AssertGoesOn:
    """Compare a training with one that goes on from the middle of it, bit for bit."""

    def check(
        rule: optax.GradientTransformation, variables: Arrays, steps: int
    ) -> None:
        settings = {"durability": "checkpoint", "checkpoint_every": NEVER}
        whole, half = tmp_path / "whole", tmp_path / "half"
        server = start_server(rule, data_dir=whole, **settings)
        train(server, variables, 0, steps)
        path, _ = admin.save_checkpoint(server.address)
        shutil.copytree(path, half / "checkpoints" / Path(path).name)
        train(server, variables, steps, 2 * steps)
        server.stop()

        successor = start_server(rule, data_dir=half, **settings)
        train(successor, variables, steps, 2 * steps)
        successor.stop()

        assert newest_arrays(half) == newest_arrays(whole)

    return check


@pytest.mark.parametrize("long_rule", LONG.values(), ids=LONG.keys())
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    long_rule: optax.GradientTransformation, assert_goes_on: AssertGoesOn
) -> None:
    """200 steps, a copy of the checkpoint alone, 200 more: as 400 without a break."""
    assert_goes_on(long_rule, FLOATS, 200)


def test_every_rule_goes_on(
    rule: optax.GradientTransformation, assert_goes_on: AssertGoesOn
) -> None:
    """Also one with a slot that has changed its type."""
    assert_goes_on(rule, FLOATS, 5)


def test_a_model_of_many_types_goes_on(assert_goes_on: AssertGoesOn) -> None:
    """What is not trained is kept."""
    assert_goes_on(optax.adam(0.1), MIXED, 5)


def test_a_rule_goes_on_with_its_plain_numbers(assert_goes_on: AssertGoesOn) -> None:
    """They leave the types of gradients alone, which arrays of them would widen."""

    def scale(updates: Any, count: Any, _: Any = None) -> Any:
        return jax.tree.map(lambda each: each * count, updates), count + 0.7

    growing = optax.GradientTransformation(lambda params: 0.1, scale)

    assert_goes_on(optax.chain(optax.sgd(0.1), growing), MIXED, 5)


def test_a_rule_goes_on_with_its_random_numbers(assert_goes_on: AssertGoesOn) -> None:
    """Its key is one of the slots."""
    noisy = optax.chain(optax.add_noise(0.1, 0.5, SEED), optax.sgd(0.1))

    assert_goes_on(noisy, FLOATS, 5)
