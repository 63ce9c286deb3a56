"""Tables, from a worker's calls to what a server keeps: rows alone travel."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
import pytest
from safetensors.numpy import load_file

import psserver
import psworker
from kit.virtualdisk import Operation, VirtualDisk
from psserver import admin, columns
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import (
    GradientNormError,
    InvalidRequestError,
    NonFiniteError,
    ServerUnavailableError,
    VariableMismatchError,
)
from pswire.values import Reason, Verdict
from psworker import Rows
from psworker.client import read
from psworker.loop import train

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
NewestArrays = Callable[[Path], bytes]
UseDisk = Callable[[VirtualDisk], None]

TIMEOUT_S = 30.0
SEED = 7
VARIABLES: dict[str, npt.NDArray[Any]] = {
    "b": np.ones((), np.float32),
    "count": np.arange(3),
    "emb": np.arange(20, dtype=np.float32).reshape(10, 2),
    "w": np.ones((30, 5), np.float32),
}


def _rows(ids: list[int], gradient: float = -1.0) -> dict[str, Rows]:
    return {"emb": Rows(ids, np.full((len(ids), 2), gradient, np.float32))}


def _table(client: psworker.Client) -> npt.NDArray[Any]:
    return np.asarray(client.pull(rows={"emb": np.arange(10)}).rows["emb"].values)


@pytest.fixture
def client(start_server: StartServer, connect: Connect) -> psworker.Client:
    """Connect to a server of plain SGD that has the variables, with one table."""
    client = connect(start_server(max_staleness=1).address)
    client.initialize(VARIABLES, tables=["em*"])
    return client


def test_rows_come_in_the_shape_that_they_were_asked_for(
    client: psworker.Client,
) -> None:
    """Beside the other variables, of the same step; one of them twice."""
    snapshot = client.pull(rows={"emb": [[3, 1], [3, 0]]})

    assert snapshot.rows["emb"].values[..., 0].tolist() == [[6, 2], [6, 0]]
    assert snapshot.rows["emb"].values.shape == (2, 2, 2)
    assert sorted(snapshot.params) == ["b", "count", "w"]
    assert sorted(client.pull().params) == ["b", "count", "w"]
    assert client.pull(like=VARIABLES).params["emb"] is None


def test_rows_are_judged_as_any_push_and_change_alone(client: psworker.Client) -> None:
    """Each is a step; a third of the same step is too stale, and changes nothing."""
    first = client.pull()

    verdicts = [client.push(_rows([2, 5, 2]), first) for _ in range(3)]

    assert verdicts == [
        Verdict(applied=True, staleness=0, step=1),
        Verdict(applied=True, staleness=1, step=2),
        Verdict(applied=False, staleness=2, step=2, reason=Reason.STALE),
    ]
    table = VARIABLES["emb"].copy()
    table[2] += 4  # Twice in each of two pushes.
    table[5] += 2
    assert _table(client).tolist() == table.tolist()
    assert client.pull().params["w"].tolist() == VARIABLES["w"].tolist()


def test_rows_and_variables_make_one_step(client: psworker.Client) -> None:
    """All of the others, or some; and an exchange brings these back."""
    first = client.pull(rows={"emb": [1]})
    dense = {"b": np.asarray(-1.0, np.float32), "w": -VARIABLES["w"]}

    verdict, second = client.exchange({**dense, **_rows([1])}, first)
    client.push({"b": dense["b"], **_rows([1])}, second)

    assert verdict.step == 1
    assert second.params["w"].tolist() == (2 * VARIABLES["w"]).tolist()
    third = client.pull(rows={"emb": [1]})
    assert (third.step, float(third.params["b"])) == (2, 3)
    assert third.rows["emb"].values.tolist() == [[4, 5]]


def test_a_pull_of_rows_brings_no_variable_that_is_known(
    start_server: StartServer, connect: Connect
) -> None:
    """What travels is as large as the rows, and the variables are there again."""
    server = start_server(http_port=0)
    client = connect(server.address)
    client.initialize(
        {**VARIABLES, "w": np.ones((500_000,), np.float32)}, tables=["emb"]
    )
    first = client.pull()

    again = client.pull(rows={"emb": [7]})

    assert again.rows["emb"].values.tolist() == [[14, 15]]
    assert again.params["w"] is not None
    assert np.shares_memory(again.params["w"], first.params["w"])


@pytest.mark.parametrize("way", ["bf16", "topk"])
def test_rows_travel_rounded_and_never_in_part(
    start_server: StartServer, connect: Connect, way: str
) -> None:
    """Of the other gradients the largest travel, of rows all do."""
    form = {"wire_dtype": "bf16"} if way == "bf16" else {"compression": "topk:0.01"}
    client = connect(start_server().address, **form)
    first = {"emb": np.ones((200, 4), np.float32), "w": VARIABLES["w"]}
    client.initialize(first, tables=["emb"])
    ids = np.arange(0, 200, 2)
    rows = Rows(ids, np.full((100, 4), -1.01, np.float32))

    client.push({"w": np.full((30, 5), 1.01, np.float32), "emb": rows}, client.pull())

    got = client.pull(rows={"emb": ids}).rows["emb"].values
    assert np.abs(got - np.float32(2.01)).max() < (0.01 if way == "bf16" else 1e-6)
    moved = np.count_nonzero(client.pull().params["w"] != 1)
    assert moved == (150 if way == "bf16" else 2)


def test_a_policy_weighs_the_update_of_rows(
    start_server: StartServer, connect: Connect
) -> None:
    """The second push is one step stale, so half of it counts."""
    client = connect(start_server(staleness_policy="inverse").address)
    client.initialize(VARIABLES, tables=["emb"])
    first = client.pull()

    client.push({**_rows([1])}, first)
    client.push({**_rows([1])}, first)
    client.push({**_rows([1])}, first)

    assert client.pull(rows={"emb": [1]}).rows["emb"].values[0, 0] == 2 + 1 + 1 + 0.5


def test_a_group_may_be_a_table(start_server: StartServer, connect: Connect) -> None:
    """Too stale for the others, a push is applied with its rows alone."""
    policy = "groups:emb=9,*=0"
    client = connect(start_server(staleness_policy=policy).address)
    client.initialize(VARIABLES, tables=["emb"])
    first = client.pull()
    both = {"b": np.asarray(-1.0, np.float32), **_rows([1])}

    verdicts = [
        client.push(both, first),
        client.push(both, first),
        client.push({"b": both["b"]}, first),
    ]

    assert [v.applied for v in verdicts] == [True, True, False]
    assert verdicts[1].dropped_variables == 1
    assert _table(client)[1].tolist() == [4, 5]
    assert client.pull().params["b"] == 2


@pytest.mark.parametrize(
    ("gradients", "told"),
    [
        ({"w": Rows([1], np.ones((1, 5), np.float32))}, "^w: expected rows of one of"),
        ({"emb": VARIABLES["emb"]}, "^emb: expected Rows, as it is a table"),
        (_rows([10]), "^emb: expected ids of rows from 0 to 9, got 10 to 10"),
        (_rows([-1]), "^emb: expected ids of rows from 0 to 9, got -1 to -1"),
    ],
)
def test_a_push_of_no_such_rows_is_refused(
    client: psworker.Client, gradients: Any, told: str
) -> None:
    """By the client or by the server; nothing changes."""
    with pytest.raises(VariableMismatchError, match=told):
        client.push(gradients, client.pull())

    assert client.pull().step == 0


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"emb": [10]}, "^emb: expected ids of rows from 0 to 9, got 10 to 10"),
        ({"w": [1]}, r"^w: expected one of the tables \(emb\), got another"),
        ({"emb": [0.5]}, "^emb: expected ids of rows in whole numbers, got float64"),
    ],
)
def test_a_pull_of_no_such_rows_is_refused(
    client: psworker.Client, rows: Any, told: str
) -> None:
    """The message begins with the name that is amiss."""
    with pytest.raises(VariableMismatchError, match=told):
        client.pull(rows=rows)


def test_only_rows_that_came_are_judged(
    start_server: StartServer, connect: Connect
) -> None:
    """By their numbers, and by their norm."""
    client = connect(start_server(max_grad_norm=10.0).address)
    client.initialize(VARIABLES, tables=["emb"])
    first = client.pull()

    with pytest.raises(NonFiniteError, match=r"^emb: expected finite gradients"):
        client.push(_rows([1], np.nan), first)
    with pytest.raises(GradientNormError, match="of at most 10, got 14"):
        client.push(_rows([1], 10.0), first)

    assert client.push(_rows([1]), first).applied


def test_a_rule_that_needs_whole_arrays_takes_no_tables(
    start_server: StartServer, connect: Connect
) -> None:
    """The first worker is told, and may offer the same variables without any."""
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    client = connect(start_server(rule).address)

    with pytest.raises(InvalidRequestError, match=r"^emb: expected a rule that treats"):
        client.initialize(VARIABLES, tables=["emb"])

    assert client.initialize(VARIABLES)


@pytest.mark.parametrize("tables", [["nothing"], ["b"], ["count"]])
def test_what_can_be_no_table_is_told(
    start_server: StartServer, connect: Connect, tables: list[str]
) -> None:
    """Before anything is sent."""
    client = connect(start_server().address)

    with pytest.raises(VariableMismatchError, match=r"^(tables|b|count): expected "):
        client.initialize(VARIABLES, tables=tables)


def test_a_stranger_s_rows_are_checked(start_server: StartServer) -> None:
    """Ids that do not rise, in a push and in a pull, and a layout without the mark."""
    server = start_server()
    with (
        psworker.connect(server.address, same_host=False) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        client.initialize({"emb": VARIABLES["emb"]}, tables=["emb"])
        stub = rpc.ParameterServerStub(channel)
        joined = stub.Join(pb.JoinRequest(worker="s", session="s"), timeout=TIMEOUT_S)
        ids = np.array([3, 2]).tobytes()
        header = pb.PushHeader(
            session="s", seq=1, generation=joined.generation, nbytes=80, rows=[2]
        )
        data = ids.ljust(64, b"\0") + bytes(16)

        for request, told in (
            (pb.PushRequest(header=header, data=data), "ids of rows that rise"),
            (_without_rows(header), "emb: expected (10, 2) float32 by rows"),
            (_of_no_rows(header), "rows: expected some of a table, got none of any"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Push(request, timeout=TIMEOUT_S)
            assert told in str(refused.value)
        pull = pb.PullRequest(rows=[pb.RowIds(name="emb", ids=ids)])
        with pytest.raises(grpc.RpcError, match="ids of rows that rise"):
            stub.Pull(pull, timeout=TIMEOUT_S)


def _of_no_rows(header: pb.PushHeader) -> pb.PushRequest:
    none = pb.PushHeader()
    none.CopyFrom(header)
    none.nbytes = 0
    del none.rows[:]
    return pb.PushRequest(header=none)


def _without_rows(header: pb.PushHeader) -> pb.PushRequest:
    spec = pb.ArraySpec(name="emb", dtype=pb.FLOAT32, shape=[10, 2])
    whole = pb.PushHeader()
    whole.CopyFrom(header)
    whole.layout.arrays.append(spec)
    del whole.rows[:]
    return pb.PushRequest(header=whole, data=bytes(80))


def _loss(params: Any, batch: Any) -> Any:
    _, factor = batch
    return factor * params["emb"].sum() + params["b"]


def test_a_loss_sees_rows_in_place_of_a_table(client: psworker.Client) -> None:
    """In the shape of their ids; a row that is there twice has both gradients."""
    like = {name: VARIABLES[name] for name in ("b", "count", "emb", "w")}

    gradients = client.compute_gradients(
        _loss, (None, 2.0), like=like, rows={"emb": [[3, 1], [3, 3]]}
    )
    verdict = client.push(gradients)
    again, value = client.minimize(_loss, (None, 2.0), rows={"emb": [[1]]})

    assert gradients.value == 2 * (3 * (6 + 7) + 2 + 3) + 1
    assert verdict.applied
    assert again.applied
    assert value == 2 * ((2 - 2) + (3 - 2)) + 0
    assert _table(client)[:4, 0].tolist() == [0, -2, 4, 0]


def test_gradients_of_rows_can_be_scaled_and_accumulated(
    client: psworker.Client,
) -> None:
    """Each map keeps the ids and the step; the mean counts what is absent as zero."""
    clip = optax.clip(0.5)
    with client.accumulate(2) as accumulator:
        for ids in ([1, 2], [2, 2]):
            gradients = client.compute_gradients(_loss, (None, 2.0), rows={"emb": ids})
            clipped, _ = clip.update(gradients, clip.init(VARIABLES))
            assert accumulator.add(jax.tree.map(lambda g: -2 * g, clipped)) in (
                None,
                Verdict(applied=True, staleness=0, step=1),
            )

    table = _table(client)
    assert table[1].tolist() == [2.5, 3.5]
    assert table[2].tolist() == [5, 6]


def test_rows_of_any_shape_can_be_accumulated(client: psworker.Client) -> None:
    """Of two gradients, one has its ids in a square."""
    first = client.pull()
    square = Rows([[1, 2], [2, 2]], np.full((2, 2, 2), -1, np.float32))

    with client.accumulate(2) as accumulator:
        accumulator.add({"emb": square}, first)
        accumulator.add(_rows([2]), first)

    assert _table(client)[:3, 0].tolist() == [0, 2.5, 6]


def _batches(shard: psworker.Shard) -> Any:
    for number in range(6):
        yield np.array([number % 3, 7]), jnp.float32(1.0)


@pytest.mark.parametrize("background_push", [False, True])
def test_a_task_with_rows_trains_those_of_its_batches(
    start_server: StartServer, connect: Connect, background_push: bool
) -> None:
    """Each batch is two rows; the others stay, and all can be evaluated."""
    server = start_server(optax.sgd(0.5))
    client = connect(server.address)
    task = psworker.Task(
        init=lambda: VARIABLES,
        loss=_loss,
        batches=_batches,
        rows={"emb": lambda batch: batch[0]},
    )

    progress = train(client, task, psworker.Shard(), background_push=background_push)

    assert (progress.applied, progress.step) == (6, 6)
    table = VARIABLES["emb"].copy()
    table[:3] -= 1
    table[7] -= 3
    found = read(server.address, like=VARIABLES)
    assert found.params["emb"].tolist() == table.tolist()
    assert found.params["b"] == 1 - 3


def test_a_task_with_rows_has_nothing_to_prefetch(
    start_server: StartServer, connect: Connect
) -> None:
    """Which rows come next only the next batch tells."""
    client = connect(start_server().address)
    task = psworker.Task(
        init=lambda: VARIABLES,
        loss=_loss,
        batches=_batches,
        rows={"emb": lambda batch: batch[0]},
    )

    with pytest.raises(ValueError, match=r"^prefetch: expected no rows"):
        train(client, task, psworker.Shard(), prefetch=True)


RULES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_tables_are_replayed_bit_for_bit(
    start_server: StartServer,
    newest_arrays: NewestArrays,
    tmp_path: Path,
    rule: optax.GradientTransformation,
) -> None:
    """From a checkpoint in their midst and from the log, as if nothing had been."""
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    settings = {"durability": "log", "checkpoint_every": 10**9, "max_staleness": None}
    server = start_server(rule, data_dir=stopped, **settings)
    numbers = np.random.default_rng(SEED)
    with psworker.connect(server.address) as client:
        client.initialize(VARIABLES, tables=["emb"])
        first = client.pull()
        for number in range(12):
            if number == 6:
                admin.save_checkpoint(server.address)
            ids = numbers.integers(0, 10, 1 + number % 5)
            values = numbers.standard_normal((len(ids), 2), np.float32)
            gradients: dict[str, Any] = {"emb": Rows(ids, values)}
            if number % 3:
                gradients["w"] = numbers.standard_normal((30, 5), np.float32)
            if number % 6 == 5:
                del gradients["emb"]
            assert client.push(gradients, first).applied
    shutil.copytree(stopped, killed)
    server.stop()

    again = start_server(rule, data_dir=killed, **settings)
    with psworker.connect(again.address) as client:
        assert client.initialize(VARIABLES, tables=["emb"]) is False
        kept = _table(client)
    again.stop()
    assert newest_arrays(killed) == newest_arrays(stopped)
    with psworker.connect(
        start_server(rule, data_dir=stopped, **settings).address
    ) as c:
        assert _table(c).tolist() == kept.tolist()


def test_rows_that_cannot_be_kept_have_not_changed(
    start_server: StartServer, connect: Connect, use_disk: UseDisk, tmp_path: Path
) -> None:
    """Nobody sees them, and the next push builds upon what was kept."""
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    server = start_server(
        optax.sgd(1.0, momentum=0.5), durability="log", data_dir=tmp_path
    )
    client = connect(server.address, outage_s=0.0)
    client.initialize(VARIABLES, tables=["emb"])
    client.push(_rows([1]), client.pull())
    before = client.variables().params

    def fail(operation: Operation) -> None:
        if operation.path.suffix == ".log":
            raise OSError("no luck")

    disk.on_operation = fail
    with pytest.raises(ServerUnavailableError, match="no luck"):
        client.push(_rows([1, 2]), client.pull())
    disk.on_operation = lambda operation: None

    after = client.variables().params
    for name, array in before.items():
        assert after[name].tolist() == array.tolist()
    with pytest.raises(OSError, match="no luck"):
        server.stop()
    again = connect(
        start_server(
            optax.sgd(1.0, momentum=0.5), durability="log", data_dir=tmp_path
        ).address
    )
    assert _table(again)[1].tolist() == [3, 4]


def test_what_the_server_keeps_of_a_table_can_be_read(client: psworker.Client) -> None:
    """As of any variable."""
    client.push(_rows([4]), client.pull())

    found = client.variables("variables/emb")

    assert found.step == 1
    assert found.params["variables/emb"][4].tolist() == [9, 10]
    assert found.params["variables/emb"].shape == (10, 2)


def test_a_pull_shows_rows_and_variables_of_its_own_step(
    start_server: StartServer, connect: Connect, in_parallel: InParallel
) -> None:
    """While others push: each push adds 1 to all, so all are as many as the step."""
    server = start_server()
    zeros = {"w": np.zeros(2, np.float32), "emb": np.zeros((50, 2), np.float32)}
    clients = [connect(server.address) for _ in range(3)]
    clients[0].initialize(zeros, tables=["emb"])
    ids = np.arange(50)
    gradient = {"w": -np.ones(2, np.float32), "emb": Rows(ids, zeros["emb"] - 1)}
    seen: list[set[float]] = []

    def push(client: psworker.Client) -> None:
        first = client.pull()
        for _ in range(40):
            client.push(gradient, first)

    def pull() -> None:
        for _ in range(60):
            got = clients[2].pull(rows={"emb": ids})
            rows = got.rows["emb"].values
            seen.append({float(got.step), *got.params["w"], *rows.reshape(-1)})

    in_parallel([lambda: push(clients[0]), lambda: push(clients[1]), pull])

    assert all(len(numbers) == 1 for numbers in seen)
    assert _every(clients[2], 50) == {80.0}


def test_a_checkpoint_is_of_one_step_while_rows_are_pushed(
    start_server: StartServer,
    connect: Connect,
    in_parallel: InParallel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read in pieces of one row, and each push changes all of them."""
    monkeypatch.setattr(columns, "_PIECE_NBYTES", 8)
    settings = {"durability": "checkpoint", "data_dir": tmp_path, "keep": 100}
    server = start_server(checkpoint_every=10**9, **settings)
    client = connect(server.address)
    zeros = {"w": np.zeros(2, np.float32), "emb": np.zeros((500, 2), np.float32)}
    client.initialize(zeros, tables=["emb"])
    ids = np.arange(500)
    gradient = {"w": -np.ones(2, np.float32), "emb": Rows(ids, zeros["emb"] - 1)}
    first = client.pull()
    client.push(gradient, first)  # Compiles.
    has_ended = Event()

    def push() -> None:
        for _ in range(100):
            client.push(gradient, first)
        has_ended.set()

    def save() -> None:
        while not has_ended.is_set():
            admin.save_checkpoint(server.address)

    in_parallel([push, save])

    steps = set()
    for folder in (tmp_path / "checkpoints").iterdir():
        arrays = load_file(folder / "arrays.safetensors")
        step = float(folder.name.rpartition("-")[2])
        assert {*arrays["variables/emb"].reshape(-1), *arrays["variables/w"]} == {step}
        steps.add(step)
    assert steps & {*range(2, 101)}


def _every(client: psworker.Client, count: int) -> set[float]:
    rows = client.pull(rows={"emb": np.arange(count)}).rows["emb"].values
    return {*rows.reshape(-1).tolist()}
