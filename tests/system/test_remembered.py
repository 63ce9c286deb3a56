"""What a server knows of its workers outlasts it: ids of pushes, names, counts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import psserver
import psworker
from psserver import admin
from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import GenerationError, SessionSupersededError, from_status
from pswire.status import WorkerState
from pswire.values import Reason, Verdict

StartServer = Callable[..., psserver.Server]
ConnectNear = Callable[..., psworker.Client]
JoinRaw = Callable[..., Any]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
Kept = Callable[..., dict[str, Any]]
Succeed = Callable[..., psserver.Server]

TIMEOUT_S = 30.0
ZEROS = {"A": np.zeros(4, np.float32)}


def send(stub: Any, request: pb.PushRequest) -> Verdict:
    """Push."""
    with from_status():
        return Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))


@pytest.mark.parametrize("durability", ["checkpoint", "log"])
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_push_that_comes_again_after_a_restart_is_not_applied_again(
    start_server: StartServer,
    connect_near: ConnectNear,
    join_raw: JoinRaw,
    succeed: Succeed,
    kept: Kept,
    mark: Mark,
    durability: str,
    end: str,
) -> None:
    """One from before the last checkpoint, and one from after it, at limit 0.

    A checkpoint server that is killed has lost the second with its step; then it
    belongs to a history that is gone.
    """
    settings = kept(durability, max_staleness=0)
    server = start_server(**settings)
    client = connect_near(server.address)
    client.initialize(ZEROS)
    requests, verdicts = [], []
    raws = [join_raw(server.address, session) for session in ("early", "late")]
    for number, (stub, make) in enumerate(raws):
        requests.append(make(1, mark(number, 4), step_read=number))
        verdicts.append(send(stub, requests[number]))
        if number == 0:
            admin.save_checkpoint(server.address)
    assert [verdict.step for verdict in verdicts] == [1, 2]

    server = succeed(server, end, **settings)
    early, late = (join_raw(server.address, name)[0] for name in ("early", "late"))

    assert send(early, requests[0]) == verdicts[0].repeated()
    if (durability, end) == ("checkpoint", "killed"):
        with pytest.raises(GenerationError, match="generation: expected"):
            send(late, requests[1])
        assert client.pull().params["A"].tolist() == [1.0, 0.0, 0.0, 0.0]
    else:
        assert send(late, requests[1]) == verdicts[1].repeated()
        assert client.pull().params["A"].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("durability", ["checkpoint", "log"])
def test_what_was_counted_is_counted_after_a_restart_too(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    mark: Mark,
    durability: str,
) -> None:
    """In all, by staleness and by worker; and a drop since the last checkpoint."""
    settings = kept(durability, max_staleness=1)
    server = start_server(**settings)
    ann, bob = (connect_near(server.address, name=name) for name in ("ann", "bob"))
    ann.initialize(ZEROS)
    first = ann.pull()
    for worker in (ann, bob):
        assert worker.push({"A": mark(0, 4)}, first).applied
    admin.save_checkpoint(server.address)
    assert bob.push({"A": mark(0, 4)}, first).reason is Reason.STALE
    before = server.status()

    after = succeed(server, "stopped", **settings).status()

    assert (after.counts.applied, after.counts.dropped) == (2, 1)
    for name in ("step", "counts", "staleness", "staleness_sum"):
        assert getattr(after, name) == getattr(before, name)
    assert [(row.name, row.counts, row.consecutive_drops) for row in after.workers] == [
        (row.name, row.counts, row.consecutive_drops) for row in before.workers
    ]
    assert {after.state(row) for row in after.workers} == {WorkerState.SILENT}
    assert all(row.last_seen_s > after.uptime_s for row in after.workers)
    assert after.incarnation != before.incarnation


@pytest.mark.parametrize("durability", ["checkpoint", "log"])
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_superseded_process_stays_so_after_a_restart(
    start_server: StartServer,
    connect_near: ConnectNear,
    join_raw: JoinRaw,
    succeed: Succeed,
    kept: Kept,
    mark: Mark,
    durability: str,
    end: str,
) -> None:
    """The newer one of the same name goes on."""
    server = start_server(**kept(durability))
    _, make = join_raw(server.address, "old", "ann")
    request = make(1, mark(0, 4), step_read=0)
    ann = connect_near(server.address, name="ann")
    ann.initialize(ZEROS)
    admin.save_checkpoint(server.address)

    server = succeed(server, end, **kept(durability))
    stub, _ = join_raw(server.address, "other")

    with pytest.raises(SessionSupersededError, match="expected the newest of worker"):
        send(stub, request)
    assert ann.push({"A": mark(1, 4)}, ann.pull()).applied
    assert ann.pull().params["A"].tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_who_joins_is_remembered_by_a_server_of_another_mode(
    start_server: StartServer,
    connect_near: ConnectNear,
    join_raw: JoinRaw,
    succeed: Succeed,
    kept: Kept,
    mark: Mark,
    end: str,
) -> None:
    """A takeover was in the log alone, which a server with checkpoints removes."""
    server = start_server(**kept("log"))
    _, make = join_raw(server.address, "old", "ann")
    connect_near(server.address, name="bob").initialize(ZEROS)
    admin.save_checkpoint(server.address)
    connect_near(server.address, name="ann")

    server = succeed(server, "killed", **kept("checkpoint"))
    server = succeed(server, end, **kept("checkpoint"))
    stub, _ = join_raw(server.address, "other")

    with pytest.raises(SessionSupersededError, match="expected the newest of worker"):
        send(stub, make(1, mark(0, 4), step_read=0))


def test_a_generation_that_a_restart_has_begun_lasts(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
) -> None:
    """Though no step has been made in it when the server is stopped."""
    server = start_server(**kept("checkpoint"))
    connect_near(server.address).initialize(ZEROS)
    first = server.status().generation

    server = succeed(server, "killed", **kept("checkpoint"))
    begun = server.status().generation
    server = succeed(server, "stopped", **kept("checkpoint"))

    assert first != begun == server.status().generation


def test_the_next_server_has_the_limits_that_it_is_given(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    mark: Mark,
) -> None:
    """What was dropped by the old limit may be applied by the new one, and so back."""
    server = start_server(**kept("log", max_staleness=0))
    client = connect_near(server.address)
    client.initialize(ZEROS)
    first, applied = client.pull(), []

    for limit in (1, 0):
        applied += [client.push({"A": mark(0, 4)}, first).applied for _ in range(2)]
        server = succeed(server, "killed", **kept("log", max_staleness=limit))
    applied.append(client.push({"A": mark(0, 4)}, first).applied)

    assert applied == [True, False, True, False, False]
    assert server.status().limits.max_staleness == 0
