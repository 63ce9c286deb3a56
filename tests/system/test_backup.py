"""Backup workers: the first few pushes make each step, from the option to the log."""

import logging
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from psserver import admin, gathering
from psserver.durability.checkpoints import FOLDER, Checkpoints
from psserver.durability.disk import RealDisk
from pswire.errors import CallCancelledError
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
ConnectNear = Callable[..., psworker.Client]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
NewestArrays = Callable[[Path], bytes]
Metrics = Callable[[psserver.Server], Mapping[tuple[str, ...], float]]

TIMEOUT_S = 30.0
NEEDED = 4
WORKERS = 6
STEPS = 30


def test_of_more_workers_the_first_few_make_each_step(
    start_server: StartServer,
    connect: Connect,
    in_parallel: InParallel,
    mark: Mark,
    scrape: Metrics,
) -> None:
    """Every push adds to its own element, by which it is seen how often it counted."""
    server = start_server(
        max_staleness=8, staleness_policy=f"backup:{NEEDED}", http_port=0
    )
    clients = [connect(server.address, name=f"w{n}") for n in range(WORKERS)]
    size = WORKERS * 2 * STEPS
    clients[0].initialize({"w": np.zeros(size, np.float32)})
    told: list[list[tuple[int, Verdict]]] = [[] for _ in clients]
    is_over = threading.Event()

    def train(worker: int) -> None:
        client = clients[worker]
        for number in range(worker, size, WORKERS):
            snapshot = client.pull()
            if snapshot.step >= STEPS or is_over.is_set():
                break
            try:
                verdict = client.push({"w": mark(number, size)}, snapshot)
            except CallCancelledError:  # The others were enough.
                break
            told[worker].append((number, verdict))
            if verdict.applied and verdict.step == STEPS:
                is_over.set()

    in_parallel([partial(train, worker) for worker in range(WORKERS)])

    made = defaultdict[int, list[int]](list)
    expected = np.zeros(size, np.float32)
    for worker, pushes in enumerate(told):
        for number, verdict in pushes:
            if verdict.applied:
                made[verdict.step].append(worker)
                expected[number] = 1 / NEEDED
    assert sorted(made) == [*range(1, STEPS + 1)]
    assert all(len(set(who)) == len(who) == NEEDED for who in made.values())
    np.testing.assert_array_equal(clients[0].pull().params["w"], expected)
    status = server.status()
    assert status.step == STEPS
    assert status.counts.applied == NEEDED * STEPS
    assert (status.limit_now, status.limits.staleness_policy) == (0, "backup:4")
    assert scrape(server)["asyncps_limit_now_steps",] == 0


def test_one_push_a_step_is_a_limit_of_0_bit_for_bit(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """Verdicts too, and pushes of some variables."""
    found = []
    for policy in ("drop:0", "backup:1"):
        generator = np.random.default_rng(2)
        server = start_server(
            optax.adam(0.1),
            max_staleness=... if policy == "drop:0" else None,
            staleness_policy=policy,
        )
        client = connect_near(server.address)
        client.initialize({name: np.ones(5, np.float32) for name in "vw"})
        verdicts = []
        for step in range(20):
            gradients = {
                name: generator.normal(size=5).astype(np.float32)
                for name in ("v", "w")[step % 2 :]
            }
            snapshot = client.pull()
            verdicts += [client.push(gradients, snapshot) for _ in range(2)]
        state = client.variables().params
        found.append((verdicts, {name: a.tobytes() for name, a in state.items()}))

    assert found[0] == found[1]
    assert [verdict.applied for verdict in found[0][0]] == [True, False] * 20


def test_a_lonely_worker_says_what_is_missing_until_somebody_comes(
    start_server: StartServer,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It tries again however long that takes: the server is not away."""
    monkeypatch.setattr(gathering, "PATIENCE_S", 0.25)
    server = start_server(staleness_policy="backup:2")
    lonely = connect(server.address, name="ann", outage_s=0.0)
    lonely.initialize({"w": np.zeros(2, np.float32)})

    def attempts() -> int:
        return server.status().counts.rejected.get("TOO_FEW_PUSHES", 0)

    with (
        caplog.at_level(logging.WARNING, "psworker"),
        ThreadPoolExecutor(1, "test") as pool,
    ):
        push = pool.submit(lonely.push, {"w": np.ones(2, np.float32)}, lonely.pull())
        while attempts() < 3:
            assert not push.done()
        other = connect(server.address, name="bob", outage_s=0.0)
        verdict = other.push({"w": np.full(2, 3.0, np.float32)}, other.pull())

        assert push.result(TIMEOUT_S) == verdict == Verdict(True, 0, 1)

    (record,) = caplog.records  # One in three seconds, however often it tries.
    assert record.getMessage().endswith(
        "push: expected 2 for step 1, got 1 in 0.25 s: 1 are missing"
    )
    assert lonely.pull().params["w"].tolist() == [-2.0, -2.0]


def test_closing_a_client_ends_its_waiting(
    start_server: StartServer, connect: Connect
) -> None:
    """And what it had pushed counts for nothing."""
    server = start_server(staleness_policy="backup:2")
    clients = [connect(server.address, name=name) for name in ("ann", "bob", "cat")]
    clients[0].initialize({"w": np.zeros(1, np.float32)})
    ones = {"w": np.ones(1, np.float32)}
    first = clients[0].pull()

    with ThreadPoolExecutor(2, "test") as pool:
        gone = pool.submit(clients[0].push, ones, first)
        while not server._store._gathering._waiting:
            assert not gone.done()
        clients[0].close()
        with pytest.raises(CallCancelledError):
            gone.result(TIMEOUT_S)
        while server._store._gathering._waiting:
            pass
        both = [
            pool.submit(client.push, {"w": np.full(1, 5.0, np.float32)}, step_read=0)
            for client in clients[1:]
        ]
        assert [push.result(TIMEOUT_S) for push in both] == [Verdict(True, 0, 1)] * 2

    assert clients[1].pull().params["w"].tolist() == [-5.0]


def test_a_stop_does_not_wait_for_pushes_that_wait(
    start_server: StartServer, connect: Connect
) -> None:
    """They are told to come again, to the next server; that is a graceful stop."""
    server = start_server(staleness_policy="backup:2")
    client = connect(server.address, outage_s=0.0)
    client.initialize({"w": np.zeros(1, np.float32)})
    first = client.pull()

    with ThreadPoolExecutor(1, "test") as pool:
        push = pool.submit(client.push, {"w": np.ones(1, np.float32)}, first)
        while not server._store._gathering._waiting:
            assert not push.done()
        was_in_time = server.stop(grace_s=10.0)

        assert was_in_time
        assert push.exception(TIMEOUT_S)
    assert server.status().step == 0


def test_steps_of_many_pushes_are_replayed_bit_for_bit(
    start_server: StartServer,
    connect_near: ConnectNear,
    in_parallel: InParallel,
    newest_arrays: NewestArrays,
    tmp_path: Path,
) -> None:
    """And each of the pushes is remembered, by a server of another policy."""
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    settings: dict[str, Any] = {"durability": "log", "checkpoint_every": 10**9}
    rule = optax.adam(0.1)
    server = start_server(
        rule, data_dir=stopped, staleness_policy="backup:3", **settings
    )
    forms: tuple[dict[str, str], ...]
    forms = ({}, {"wire_dtype": "bf16"}, {"compression": "topk:0.1"})
    clients = [
        connect_near(server.address, name=f"w{n}", **form)
        for n, form in enumerate(forms)
    ]
    clients[0].initialize(
        {"b": np.ones(3, np.float16), "v": np.ones(40, np.float32), "w": np.ones(4)}
    )
    generator = np.random.default_rng(3)

    def push(client: psworker.Client, seed: int) -> Verdict:
        mine = np.random.default_rng(seed)
        snapshot = client.pull()
        return client.push(
            {
                name: mine.normal(size=array.shape).astype(array.dtype)
                for name, array in snapshot.params.items()
            },
            snapshot,
        )

    for step in range(8):
        if step == 3:
            admin.save_checkpoint(server.address)
        seeds = generator.integers(2**31, size=3)
        calls = [partial(push, c, int(s)) for c, s in zip(clients, seeds, strict=True)]
        assert in_parallel(calls) == [Verdict(True, 0, step + 1)] * 3
    shutil.copytree(stopped, killed)
    server.stop()

    later = start_server(rule, data_dir=killed, **settings)
    counts = later.status().counts
    later.stop()

    assert counts.applied == 24
    assert newest_arrays(killed) == newest_arrays(stopped)
    for folder in (stopped, killed):
        saved = Checkpoints(RealDisk(), folder / FOLDER)
        kept = saved.describe(saved.names()[-1]).checkpoint
        rows = [(row.worker, row.last_seq) for row in kept.sessions.values()]
        assert sorted(rows) == [("w0", 8), ("w1", 8), ("w2", 8)]
        verdicts = [row.last_verdict for row in kept.sessions.values()]
        assert verdicts == [Verdict(True, 0, 8)] * 3
