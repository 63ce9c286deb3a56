"""All that a server keeps of a model, by name: for a worker, for the command."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import psserver
import psworker
from psserver import admin
from psserver.cli import main
from psserver.durability.checkpoints import FOLDER, Checkpoints
from psserver.durability.disk import RealDisk
from pswire.errors import NotInitializedError, VariableMismatchError

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]

TIMEOUT_S = 30.0
PARAMS = {"n": np.arange(3), "w": np.ones((2, 3), np.float32)}
ONES = {"w": np.ones((2, 3), np.float32)}
NAMES = [
    *("variables/n", "variables/w", "slots[0].count"),
    *("slots[0].mu['w']", "slots[0].nu['w']"),
]


@pytest.fixture
def adam(start_server: StartServer) -> psserver.Server:
    """Start a server of Adam, at step 1."""
    server = start_server(optax.adam(0.1))
    with psworker.connect(server.address) as client:
        client.initialize(PARAMS)
        client.push(ONES, client.pull())
    return server


def test_a_worker_reads_all_that_there_is_or_some_of_it(
    adam: psserver.Server, connect: Connect
) -> None:
    """Counts are there too, and the step is that of the cut."""
    client = connect(adam.address)

    everything, some = client.variables(), client.variables(*NAMES[2::-2])

    assert list(everything.params) == NAMES
    assert (everything.step, everything.generation) == (1, client.pull().generation)
    assert [(name, array.tolist()) for name, array in some.params.items()] == [
        ("slots[0].count", 1),
        ("variables/n", [0, 1, 2]),
    ]
    for name, array in some.params.items():
        assert array.tobytes() == everything.params[name].tobytes()
    newest = client.pull().params["w"]
    assert everything.params["variables/w"].tobytes() == newest.tobytes()


def test_a_slot_is_found_by_its_name_and_its_variable(
    adam: psserver.Server, connect: Connect
) -> None:
    """As TensorFlow's optimizers have it: of a variable that is trained."""
    client = connect(adam.address)

    mu, nu = (client.slot(name, "w") for name in client.slot_names())

    assert client.slot_names() == ("slots[0].mu", "slots[0].nu")
    np.testing.assert_allclose(mu, np.full((2, 3), 0.1), rtol=1e-6)
    np.testing.assert_allclose(nu, np.full((2, 3), 0.001), rtol=1e-6)
    message = r"^n: expected a slot that it has, which are none, got slots\[0\]\.mu$"
    with pytest.raises(VariableMismatchError, match=message):
        client.slot("slots[0].mu", "n")
    message = r"^w: .*, which are slots\[0\]\.mu, slots\[0\]\.nu, got mu$"
    with pytest.raises(VariableMismatchError, match=message):
        client.slot("mu", "w")


@pytest.mark.parametrize(
    "name",
    ["w" * 1024, "\\" * 1024, "\u200b" * 341, "\U000e0001" * 256, "\"'" * 512],
    ids=["letters", "backslashes", "unseen", "rare", "quotes"],
)
def test_a_variable_may_have_the_longest_name_that_there_is(
    start_server: StartServer, connect: Connect, name: str
) -> None:
    """Its slots have longer ones, as they quote it."""
    server = start_server(optax.adam(0.1))
    client = connect(server.address)
    client.initialize({name: np.ones(2, np.float32)})

    assert client.slot("slots[0].mu", name).tolist() == [0, 0]
    assert len(admin.inspect(server.address).layout.arrays) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["w"], "w: expected one of variables/n, .*, got another name"),
        (["variables/w"] * 2, "variables/w: expected once, got twice"),
    ],
)
def test_an_array_that_is_not_there_is_refused_by_name(
    adam: psserver.Server, names: list[str], message: str
) -> None:
    """Also by one who has not looked at what there is."""
    with pytest.raises(VariableMismatchError, match=f"^{message}"):
        admin.inspect(adam.address, names)


def test_before_the_first_variables_there_is_nothing_to_look_at(
    start_server: StartServer, connect: Connect
) -> None:
    """As with a pull."""
    client = connect(start_server().address)

    with pytest.raises(NotInitializedError, match=r"^variables: expected to be ini"):
        client.variables()


def test_the_names_are_those_of_a_checkpoint(
    start_server: StartServer, connect: Connect, tmp_path: Path
) -> None:
    """Of a rule with labels that are variables' names, and of names with quotes."""
    params = {"it's": np.ones(2, np.float32), 'say "mu"': np.ones(3, np.float32)}
    rule = optax.multi_transform(
        {name: optax.adam(0.1) for name in params}, {name: name for name in params}
    )
    server = start_server(rule, durability="checkpoint", data_dir=tmp_path)
    client = connect(server.address)
    client.initialize(params)
    client.push(params, client.pull())

    everything = client.variables().params

    admin.save_checkpoint(server.address)
    saved = Checkpoints(RealDisk(), tmp_path / FOLDER)
    digests = saved.describe(saved.names()[-1]).digests
    assert list(everything) == [spec.name for spec in digests]
    label = 'slots.inner_states["it\'s"].inner_state[0]'
    assert client.slot(f"{label}.mu", "it's").shape == (2,)


def _noting_count() -> optax.GradientTransformation:
    """Make all a variable's slots tell the number of the push that they are of."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        counted = {
            "count": state["count"] + 1,
            "trace": jax.tree.map(lambda t: t + 1, state["trace"]),
        }
        return updates, counted

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"count": jnp.zeros((), jnp.int32), "trace": zeros}

    return optax.GradientTransformation(init, update)


def test_what_is_read_while_pushes_go_on_is_of_one_step(
    start_server: StartServer, connect: Connect
) -> None:
    """Variables, slots, count and step; of more than a piece of a stream."""
    size = 400_000
    server = start_server(optax.chain(optax.sgd(1.0), _noting_count()))
    params = {"w": np.zeros(size, np.float32)}
    pusher, reader = connect(server.address), connect(server.address)
    pusher.initialize(params)
    gradients = {"w": np.full(size, -1.0, np.float32)}
    done, steps = Event(), set[int]()

    def push() -> None:
        while not done.is_set():
            pusher.push(gradients, pusher.pull())

    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(push)
        try:
            while len(steps) < 10:
                cut = reader.variables()
                steps.add(cut.step)
                for array in cut.params.values():
                    assert (array == cut.step).all()
        finally:
            done.set()
        pushing.result(TIMEOUT_S)


def _inspect(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_lists_the_arrays(adam: psserver.Server) -> None:
    """For people and for scripts."""
    table, told = _inspect(adam.address), json.loads(_inspect(adam.address, "--json"))

    assert re.search(r"^step 1, generation [0-9a-f]+: 100 bytes in all\n", table)
    for row in (
        r"name +dtype +shape +nbytes",
        r"variables/n +int64 +\[3\] +24",
        r"slots\[0\]\.mu\['w'\] +float32 +\[2, 3\] +24",
        r"slots\[0\]\.count +int32 +\[\] +4",
    ):
        assert re.search(f"^{row}$", table, re.MULTILINE), row
    assert [row["name"] for row in told["arrays"]] == NAMES
    assert told["arrays"][1] == {
        **{"name": "variables/w", "dtype": "float32"},
        **{"shape": [2, 3], "nbytes": 24},
    }


def test_the_command_tells_what_one_array_s_numbers_are_like(
    adam: psserver.Server,
) -> None:
    """And of which step; a name that is not there is an error."""
    table = _inspect(adam.address, "variables/n")
    told = json.loads(_inspect(adam.address, "variables/n", "--json"))

    row = r"variables/n +int64 +\[3\] +24 +0 +2 +1 +2\.23607 +0\.0% +33\.3%"
    assert re.search(f"^{row}$", table, re.MULTILINE)
    assert told == {
        **{"generation": told["generation"], "step": 1, "name": "variables/n"},
        **{"dtype": "int64", "shape": [3], "nbytes": 24},
        **{"min": 0.0, "max": 2.0, "mean": 1.0, "norm": 5**0.5},
        **{"nan": 0.0, "zero": 1 / 3},
    }
    there = {"PSSERVER_ADDRESS": adam.address}
    for name in ("variables/n", "slots[0].count"):
        named = CliRunner().invoke(main, ["inspect", name], env=there)
        assert named.output == _inspect(adam.address, name)
    result = CliRunner().invoke(main, ["inspect", adam.address, "w"])
    assert result.exit_code == 1
    assert "w: expected one of variables/n" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w"], "expected HOST:PORT, or the name of an array .*, got 'w'"),
        (["variables/w", "127.0.0.1:7070"], "expected one NAME, got 2"),
    ],
)
def test_what_is_neither_an_address_nor_a_name_is_a_usage_error(
    arguments: list[str], message: str
) -> None:
    """No server is asked."""
    result = CliRunner().invoke(main, ["inspect", *arguments])

    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
