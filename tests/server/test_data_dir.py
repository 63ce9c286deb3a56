"""A data directory is one server's at a time, of one rule, of one model."""

import logging
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import Result

import psserver
import psworker
from kit.processes import Served
from psserver import admin
from psserver.durability.errors import DataDirectoryError
from psserver.rulespec import resolve
from pswire.errors import VariableMismatchError
from psworker.loop import train

StartServer = Callable[..., psserver.Server]
Run = Callable[..., Result]
Keep = Callable[..., psserver.Server]

RULE = "sgd(learning_rate=0.5)"
SGD = ("serve", "--rule", "sgd", "-a", "learning_rate=0.5")


@pytest.fixture
def keep(start_server: StartServer, tmp_path: Path) -> Keep:
    """Start a server of SGD that keeps what it has in a folder of the test's."""

    def start(rule: Any = None, **settings: Any) -> psserver.Server:
        settings = {"rule_name": RULE, "durability": "log", **settings}
        sgd = resolve("sgd", {"learning_rate": 0.5})
        return start_server(rule or sgd, data_dir=tmp_path / "data", **settings)

    return start


@pytest.fixture
def kept(keep: Keep, tmp_path: Path) -> tuple[str, ...]:
    """Leave a model after its server; return the options of one that goes on."""
    with keep() as server, psworker.connect(server.address) as client:
        client.initialize({"w": np.zeros(2, np.float32)})
        client.push({"w": np.ones(2, np.float32)}, client.pull())
    return "--durability", "log", "--data-dir", str(tmp_path / "data"), "--port", "0"


def test_a_second_server_of_a_data_directory_refuses_at_once(
    kept: tuple[str, ...], keep: Keep, run: Run
) -> None:
    """It says which process has it; the first one goes on, and leaves it to another."""
    with keep() as server, psworker.connect(server.address) as client:
        result = run(*SGD, *kept)
        assert client.push({"w": np.ones(2, np.float32)}, client.pull()).applied

    assert result.exit_code == 1
    assert "listening" not in result.output
    said = r"^Error: data_dir: expected .*/data for this server alone, got one that "
    said += r"process \d+ is using\n$"
    assert re.search(said, result.output)
    assert keep().status().step == 2


def test_what_the_system_says_of_a_data_directory_is_told_under_its_name(
    run: Run, tmp_path: Path
) -> None:
    """Here it lies in a file."""
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "data")

    result = run(*SGD, "--durability", "log", "--data-dir", folder, "--port", "0")

    assert result.exit_code == 1
    said = "data_dir: expected files that can be used, got [Errno "
    assert result.output.startswith(f"Error: {said}")


@pytest.mark.parametrize(("durability", "step"), [("log", 20), ("checkpoint", 0)])
def test_where_what_the_last_server_wrote_of_itself_is_damaged_it_can_be_moved_away(
    keep: Keep, run: Run, tmp_path: Path, durability: str, step: int
) -> None:
    """It was killed: with a log nothing is lost, and else all since the checkpoint."""
    data, left = tmp_path / "data", tmp_path / "left"
    options = ("--durability", durability, "--data-dir", str(data), "--port", "0")
    settings = {"durability": durability, "checkpoint_every": 10**9}
    with keep(**settings) as server, psworker.connect(server.address) as client:
        client.initialize({"w": np.zeros(2, np.float32)})
        for _ in range(20):
            assert client.push({"w": np.ones(2, np.float32)}, client.pull()).applied
        shutil.copytree(data, left)
    shutil.rmtree(data)
    left.rename(data)
    state = data / "state.json"
    state.write_bytes(state.read_bytes()[1:])

    refused = run(*SGD, *options)
    state.rename(tmp_path / "state.json")
    with keep(**settings) as after, psworker.connect(after.address) as client:
        snapshot = client.pull()

    assert refused.exit_code == 1
    said = rf"^Error: {state}: expected .*; to go on .*, move it away, it alone\n$"
    assert re.search(said, refused.output)
    assert (snapshot.step, snapshot.params["w"].tolist()) == (step, [-step / 2] * 2)
    is_same = after.status().generation == server.status().generation
    assert is_same == (durability == "log")


@pytest.mark.parametrize(
    ("rule", "got"),
    [
        (("--rule", "adam", "-a", "learning_rate=0.5"), "adam(learning_rate=0.5)"),
        (("--rule", "sgd", "-a", "learning_rate=0.1"), "sgd(learning_rate=0.1)"),
    ],
)
def test_another_rule_or_argument_is_refused_by_name(
    kept: tuple[str, ...], keep: Keep, run: Run, rule: tuple[str, ...], got: str
) -> None:
    """With the right one the server goes on, as if nobody had tried another."""
    result = run("serve", *rule, *kept)

    assert (result.exit_code, result.output) == (
        1,
        f"Error: rule: expected {RULE}, which the variables were trained with, "
        f"got {got}\n",
    )
    assert keep().status().step == 1


def test_the_same_rule_typed_otherwise_is_taken(
    kept: tuple[str, ...], serve: Callable[..., AbstractContextManager[Served]]
) -> None:
    """`--rule optax:sgd` after `--rule sgd`."""
    with serve(*kept, "--rule", "optax:sgd") as server:
        status = admin.status(server.address())

    assert (status.rule, status.step) == (RULE, 1)


def test_a_rule_without_a_name_is_refused_by_its_slots(
    kept: tuple[str, ...], keep: Keep
) -> None:
    """Which one is amiss is said; the server with the right rule goes on."""
    with pytest.raises(
        DataDirectoryError,
        match=r"^rule: expected .*/data is of.*; slots.*: expected .*, got",
    ):
        keep(optax.sgd(0.5, momentum=0.9))

    assert keep().status().step == 1


def test_other_limits_than_those_of_the_checkpoint_are_told(
    keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    """They are taken, each time; the same ones are nothing to tell."""
    caplog.set_level(logging.INFO, "psserver")
    up = {"w": np.full(2, 0.1, np.float32)}

    for settings in (
        {"max_staleness": 8},
        {"max_staleness": 8},
        {"max_staleness": 2},
        {"max_staleness": 2, "max_grad_norm": 0.5},
        {"max_staleness": None},
        {"max_staleness": None, "staleness_policy": "inverse"},
    ):
        with keep(**settings) as server, psworker.connect(server.address) as client:
            client.initialize(up)
            assert client.push(up, client.pull()).applied

    begin = "going on with other limits: "
    assert [m.removeprefix(begin) for m in caplog.messages if m.startswith(begin)] == [
        "limit 2 steps, was 8 steps",
        "max_grad_norm 0.5, was off",
        "limit off, was 2 steps; max_grad_norm off, was 0.5",
        "policy inverse, was drop",
    ]
    told = [
        vars(r) for r in caplog.records if getattr(r, "event", "") == "limits_changed"
    ]
    names = ("limit", "limit_before", "max_grad_norm", "max_grad_norm_before")
    assert [told[2][name] for name in names] == [None, 2, None, 0.5]
    assert told[2]["peer"] is None


def test_a_group_that_no_kept_variable_is_of_is_warned_of(
    keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start: nobody brings variables any more."""
    with keep() as server, psworker.connect(server.address) as client:
        client.initialize({"w": np.ones(2, np.float32)})

    keep(staleness_policy="groups:w=4,v=1")

    assert [vars(r)["patterns"] for r in caplog.records if "event" in vars(r)] == [
        ["v"]
    ]


def test_a_worker_of_another_model_is_told_what_differs(
    kept: tuple[str, ...], keep: Keep
) -> None:
    """Its variables come too late to be taken; it changes nothing."""
    server = keep()
    task = psworker.Task(
        init=lambda: {"w": jnp.zeros(3)},
        loss=lambda params, batch: jnp.sum(params["w"]),
        batches=lambda shard: iter([0.0]),
    )

    with (
        psworker.connect(server.address) as client,
        pytest.raises(VariableMismatchError, match=r"^w: expected .*3.*got .*2"),
    ):
        train(client, task, psworker.Shard(0, 1))

    assert server.status().step == 1
