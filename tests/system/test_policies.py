"""A staleness policy from its option to the variables, and its change on the way."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optax
import pytest

import psserver
import psworker
from psserver import admin
from pswire.errors import InvalidRequestError
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
ConnectNear = Callable[..., psworker.Client]

AGES = 6
ONES = {"w": np.ones(2, np.float32)}


def push_all_ages(client: psworker.Client) -> list[Verdict]:
    """Push from the first step again and again: each push is a step older."""
    client.initialize({"w": np.zeros(2, np.float32)})
    first = client.pull()
    return [client.push(ONES, first) for _ in range(AGES)]


@pytest.mark.parametrize(
    ("policy", "factors"),
    [
        ("drop", [1, 1, 1, 1, 1]),
        ("inverse", [1, 1, 1 / 2, 1 / 3, 1 / 4]),
        ("polynomial:2", [1, 1 / 4, 1 / 9, 1 / 16, 1 / 25]),
        ("hinge:1,2", [1, 1, 1, 1 / 2, 1 / 3]),
        ("exponential:1", [np.exp(-age) for age in range(5)]),
        ("adaptive:1,0,9", [1, 1, 1, 1, 1]),
    ],
)
def test_a_push_counts_as_its_verdict_says(
    policy: str,
    factors: list[float],
    start_server: StartServer,
    connect: Connect,
) -> None:
    """Over gRPC and past it; the limit is hard beside every policy."""
    server = start_server(max_staleness=4, staleness_policy=policy)
    client = connect(server.address)

    verdicts = push_all_ages(client)

    assert [verdict.applied for verdict in verdicts] == [True] * 5 + [False]
    told = [verdict.factor for verdict in verdicts]
    assert told == pytest.approx([*factors, 1.0], rel=1e-15)
    np.testing.assert_allclose(client.pull().params["w"], -sum(factors), rtol=1e-6)
    status = client.status()
    assert status.limits.staleness_policy == policy
    assert status.withheld == pytest.approx(5 - sum(factors))


def test_a_worker_is_told_how_many_drops_in_a_row(
    start_server: StartServer, connect: Connect
) -> None:
    """Its own, whatever its processes; the status says the same."""
    server = start_server(max_staleness=1)
    first = connect(server.address, name="ann")
    told = [verdict.consecutive_drops for verdict in push_all_ages(first)]

    second = connect(server.address, name="ann")
    later = [second.push(ONES, step_read=0), second.push(ONES, second.pull())]

    assert told == [0, 0, 1, 2, 3, 4]
    assert [verdict.consecutive_drops for verdict in later] == [5, 0]
    assert server.status().workers[0].consecutive_drops == 0


def test_adam_is_slowed_by_a_policy(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """The update is scaled: by its own measure every gradient is as large as ever."""
    server = start_server(optax.adam(0.1), staleness_policy="exponential:1")
    client = connect_near(server.address)

    push_all_ages(client)

    moved = -0.1 * sum(np.exp(-age) for age in range(AGES))
    np.testing.assert_allclose(client.pull().params["w"], moved, rtol=1e-5)


@pytest.mark.parametrize("durability", ["checkpoint", "log"])
def test_an_adaptive_limit_begins_anew_with_a_server(
    durability: str,
    start_server: StartServer,
    connect_near: ConnectNear,
    tmp_path: Path,
) -> None:
    """What it looked at tells of workers that may not come back."""
    settings = {"durability": durability, "staleness_policy": "adaptive:1,0,9"}
    left, kept = tmp_path / "left", tmp_path / "kept"
    server = start_server(data_dir=kept, checkpoint_every=10**9, **settings)
    client = connect_near(server.address)
    client.initialize(ONES)
    for _ in range(20):
        client.push(ONES, client.pull())
    shutil.copytree(kept, left)
    before = client.status()
    server.stop()

    after = [start_server(data_dir=f, **settings).status() for f in (kept, left)]

    assert (before.policy_limit, before.limit_now) == (0, 0)
    assert [status.policy_limit for status in after] == [9, 9]


def test_a_change_holds_from_its_answer_on(
    start_server: StartServer, connect_near: ConnectNear, tmp_path: Path
) -> None:
    """For the next push, in the status, and in the next checkpoint; not before."""
    server = start_server(
        max_staleness=1, durability="checkpoint", data_dir=tmp_path, keep=1
    )
    client = connect_near(server.address)

    before = push_all_ages(client)
    limits = admin.change(
        server.address, {"max_staleness": "off", "staleness_policy": "inverse"}
    )
    verdict = client.push(ONES, step_read=0)
    server.stop()
    (manifest,) = tmp_path.glob("checkpoints/*/manifest.json")

    assert [each.applied for each in before] == [True, True, *[False] * 4]
    assert verdict == Verdict(applied=True, staleness=2, step=3, factor=0.5)
    assert limits == server.status().limits
    assert (limits.max_staleness, limits.staleness_policy) == (None, "inverse")
    assert '"staleness_policy": "inverse"' in manifest.read_text()


def test_no_push_is_judged_by_half_of_a_change(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """While settings change to and fro, each verdict is of one or of the other."""
    server = start_server(max_staleness=1)
    client = connect_near(server.address)
    push_all_ages(client)
    strict = {"max_staleness": "1", "staleness_policy": "drop"}
    mild = {"max_staleness": "off", "staleness_policy": "inverse"}
    done = threading.Event()

    def change_to_and_fro() -> None:
        while not done.is_set():
            for settings in (mild, strict):
                admin.change(server.address, settings)

    found = set()
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change_to_and_fro)
        try:
            for _ in range(2000):
                verdict = client.push(ONES, step_read=0)
                found.add(
                    "whole"
                    if verdict.applied and verdict.factor == 1 / verdict.staleness
                    else "half"
                    if verdict.applied
                    else "dropped"
                )
                if {"whole", "dropped"} <= found:
                    break
        finally:
            done.set()
            changing.result()

    assert found == {"whole", "dropped"}


@pytest.mark.parametrize("policy", ["delay-compensation:0.1", "backup:2"])
def test_a_policy_that_takes_no_tables_says_so(
    policy: str, start_server: StartServer, connect: Connect
) -> None:
    """When variables come, or when it comes to them; then nothing has changed."""
    params = {"table": np.zeros((4, 2), np.float32)}
    before, after = (
        start_server(max_staleness=4),
        start_server(max_staleness=4, staleness_policy=policy),
    )
    client, late = connect(before.address), connect(after.address)
    client.initialize(params, tables=["table"])

    name = policy.partition(":")[0]
    said = f"expected one that takes tables, as table is one, got {name}"
    with pytest.raises(InvalidRequestError, match=said):
        late.initialize(params, tables=["table"])
    with pytest.raises(InvalidRequestError, match=said):
        admin.change(before.address, {"staleness_policy": policy})

    assert before.status().limits.staleness_policy == "drop"
    assert late.initialize(params)
