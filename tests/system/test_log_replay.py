"""A log is replayed bit for bit, whatever way the gradients have travelled."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import optax
import pytest

import psserver
import psworker
from kit.virtualdisk import Operation, VirtualDisk
from psserver import admin
from psserver.durability.checkpoints import FOLDER, Checkpoints
from psserver.durability.disk import RealDisk
from psserver.durability.errors import DataDirectoryError
from pswire.errors import ServerUnavailableError
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]
ConnectNear = Callable[..., psworker.Client]
NewestArrays = Callable[[Path], bytes]
UseDisk = Callable[[VirtualDisk], None]

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
    """Variables and slots, of plain, rounded and sparse pushes, of all and of some."""
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
        for every, name in ((5, "brain"), (7, "w")):
            if number % every == 0 and len(gradients) > 1:
                del gradients[name]
        assert client.push(gradients, client.pull()).applied
    shutil.copytree(stopped, killed)
    server.stop()

    start_server(rule, data_dir=killed, **settings).stop()

    assert newest_arrays(killed) == newest_arrays(stopped)
    assert max((killed / "checkpoints").iterdir()).name.endswith(f"-{2 * PUSHES}")


@pytest.mark.parametrize(
    ("policy", "form", "counted"),
    [
        ("polynomial:0.3", {}, {"factor": 10**-0.3}),
        ("groups:brain=4", {}, {"dropped_variables": 1}),
        ("groups:b*=4,w=20", FORMS[-1], {"dropped_variables": 1}),
    ],
    ids=["weighed", "in part", "in part of the largest"],
)
def test_a_push_that_counted_less_is_replayed_as_it_counted(
    start_server: StartServer,
    connect_near: ConnectNear,
    newest_arrays: NewestArrays,
    tmp_path: Path,
    policy: str,
    form: dict[str, str],
    counted: dict[str, Any],
) -> None:
    """By another policy than it was judged by; its retry would be told the same."""
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    settings = {"durability": "log", "checkpoint_every": 10**9, "max_staleness": None}
    server = start_server(
        optax.adam(0.1), data_dir=stopped, staleness_policy=policy, **settings
    )
    client = connect_near(server.address, **form)
    client.initialize(VARIABLES)
    first = client.pull()
    gradients = {name: VARIABLES[name] for name in ("brain", "w")}
    verdicts = [client.push(gradients, first) for _ in range(10)]
    shutil.copytree(stopped, killed)
    server.stop()

    start_server(
        optax.adam(0.1), data_dir=killed, staleness_policy="groups:w=0", **settings
    ).stop()

    assert verdicts[0] == Verdict(applied=True, staleness=0, step=1)
    assert verdicts[-1] == Verdict(applied=True, staleness=9, step=10, **counted)
    assert newest_arrays(killed) == newest_arrays(stopped)
    for folder in (stopped, killed):
        saved = Checkpoints(RealDisk(), folder / FOLDER)
        kept = saved.describe(saved.names()[-1]).checkpoint
        assert kept.counters.dropped_variables == 5 * verdicts[-1].dropped_variables
        assert [one.last_verdict for one in kept.sessions.values()] == [verdicts[-1]]


def test_a_log_that_ends_before_the_last_server_did_is_damaged(
    start_server: StartServer, connect_near: ConnectNear, tmp_path: Path
) -> None:
    """Its end looks torn, as a crash leaves it; but that server stopped with grace."""
    settings: dict[str, Any] = {"durability": "log", "data_dir": tmp_path / "data"}
    server = start_server(**settings)
    client = connect_near(server.address)
    client.initialize(VARIABLES)
    gradients = {"w": VARIABLES["w"], "brain": VARIABLES["brain"]}
    for _ in range(3):
        client.push(gradients, client.pull())
    server.stop()
    newest = max((tmp_path / "data" / "checkpoints").iterdir())
    (newest / "arrays.safetensors").write_bytes(b"damaged")
    (log,) = (tmp_path / "data" / "log").iterdir()
    log.write_bytes(log.read_bytes()[:-1])

    with pytest.raises(DataDirectoryError, match=r"the steps up to 3, .* up to 2$"):
        start_server(**settings)


def test_a_first_model_that_was_refused_is_not_gone_back_to(
    start_server: StartServer,
    connect_near: ConnectNear,
    use_disk: UseDisk,
    tmp_path: Path,
) -> None:
    """Another one has been taken since; all of its checkpoints are damaged later."""
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    settings: dict[str, Any] = {"durability": "log", "data_dir": tmp_path}
    server = start_server(**settings)
    client = connect_near(server.address, outage_s=0.0)

    def fail(operation: Operation) -> None:
        if operation.kind == "create" and operation.path.name == "state.json.new":
            raise OSError("no room")

    disk.on_operation = fail
    with pytest.raises(ServerUnavailableError, match="no room"):
        client.initialize({"w": np.zeros(2, np.float32)})
    disk.on_operation = lambda operation: None
    client.initialize({"w": np.ones(2, np.float32)})
    client.push({"w": np.ones(2, np.float32)}, client.pull())
    server.stop()
    folder = tmp_path / "checkpoints"
    for name in sorted(disk.names(folder))[-2:]:
        disk.truncate(folder / name / "arrays.safetensors", 0)

    with pytest.raises(DataDirectoryError, match="expected a good checkpoint"):
        start_server(**settings)
