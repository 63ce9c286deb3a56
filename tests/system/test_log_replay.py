"""A log is replayed bit for bit, whatever way the gradients have travelled."""

import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import optax
import pytest

import psserver
import psworker
from psserver import admin

StartServer = Callable[..., psserver.Server]
ConnectNear = Callable[..., psworker.Client]
NewestArrays = Callable[[Path], bytes]

SEED = 15
PUSHES = 40  # Before a checkpoint, and after it.
VARIABLES = {
    "brain": np.ones(21, ml_dtypes.bfloat16),
    "count": np.arange(3),
    "w": np.ones((30, 5), np.float32),
}
FORMS: tuple[dict[str, str], ...] = (
    {},
    {"wire_dtype": "bf16"},
    {"compression": "topk:0.1"},
    {"wire_dtype": "bf16:push", "compression": "topk:0.1"},
)
RULES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_what_a_killed_server_has_logged_is_replayed_bit_for_bit(
    start_server: StartServer,
    connect_near: ConnectNear,
    newest_arrays: NewestArrays,
    tmp_path: Path,
    rule: optax.GradientTransformation,
) -> None:
    """Variables and slots, of plain, rounded and sparse pushes in turn."""
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    settings = {"durability": "log", "checkpoint_every": 10**9, "max_staleness": 2}
    server = start_server(rule, data_dir=stopped, **settings)
    clients = [connect_near(server.address, **form) for form in FORMS]
    clients[0].initialize(VARIABLES)
    generator = np.random.default_rng(SEED)
    for number in range(2 * PUSHES):
        if number == PUSHES:
            admin.save_checkpoint(server.address)
        client = clients[number % len(clients)]
        gradients = {
            name: generator.standard_normal(VARIABLES[name].shape, np.float32)
            for name in ("brain", "w")
        }
        gradients["brain"] = gradients["brain"].astype(ml_dtypes.bfloat16)
        assert client.push(gradients, client.pull()).applied
    shutil.copytree(stopped, killed)
    server.stop()

    start_server(rule, data_dir=killed, **settings).stop()

    assert newest_arrays(killed) == newest_arrays(stopped)
    assert max((killed / "checkpoints").iterdir()).name.endswith(f"-{2 * PUSHES}")
