"""Calls that end before their answer: by a deadline, or because the caller went."""

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from kit.virtualdisk import Operation, VirtualDisk
from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import DeadlineError, from_status
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
JoinRaw = Callable[..., Any]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Hold = Callable[[], AbstractContextManager[threading.Event]]
SendHalf = Callable[..., tuple[Any, Callable[[], None]]]
UseDisk = Callable[[VirtualDisk], None]
Size = Callable[[int, int], int]

TIMEOUT_S = 30.0


def test_a_push_whose_deadline_runs_out_while_it_waits_is_not_applied(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
) -> None:
    """Two wait for a third: the one that is sent again is new, the other is nothing."""
    server = start_server(slow_rule)
    client = connect(server.address)
    client.initialize({"A": np.zeros(3, np.float32)})
    snapshot = client.pull()
    joined = [join_raw(server.address, session) for session in ("again", "never")]
    requests = [
        make(1, mark(number, 3), step_read=0)
        for number, (_, make) in enumerate(joined, 1)
    ]

    with ThreadPoolExecutor(1) as pool, hold() as reached:
        holder = pool.submit(client.push, {"A": mark(0, 3)}, snapshot)
        assert reached.wait(TIMEOUT_S)
        for (stub, _), request in zip(joined, requests, strict=True):
            with pytest.raises(DeadlineError, match="Deadline Exceeded"), from_status():
                stub.Push(request, timeout=0.2)
            # On the same connection: the server has seen the end of what came before.
            assert stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0
    retry = Verdict.from_proto(joined[0][0].Push(requests[0], timeout=TIMEOUT_S))
    final = client.pull()
    server.stop()  # The first attempts' threads have certainly ended now.

    assert holder.result() == Verdict(applied=True, staleness=0, step=1)
    assert retry == Verdict(applied=True, staleness=1, step=2)
    assert (final.step, final.params["A"].tolist()) == (2, [1.0, 1.0, 0.0])
    status = server.status()
    assert (status.step, status.counts.applied) == (2, 2)
    assert set(status.counts.rejected) <= {"CALL_CANCELLED"}


def test_cancelled_pushes_leave_no_lock_held(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
) -> None:
    """One is cancelled inside the rule, one waiting for it; others go on at once."""
    server = start_server(slow_rule)
    client = connect(server.address)
    client.initialize({"A": np.zeros(3, np.float32)})
    first, make_first = join_raw(server.address, "first")
    second, make_second = join_raw(server.address, "second")
    requests = [
        make(1, mark(i, 3), step_read=0)
        for i, make in enumerate((make_first, make_second))
    ]

    with hold() as reached:
        applying = first.Push.future(requests[0], timeout=TIMEOUT_S)
        assert reached.wait(TIMEOUT_S)
        waiting = second.Push.future(requests[1], timeout=TIMEOUT_S)
        assert second.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0
        for pushed, stub in ((applying, first), (waiting, second)):
            pushed.cancel()
            assert stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0
    verdict = client.push({"A": mark(2, 3)}, step_read=0)
    retries = [
        Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))
        for stub, request in zip((first, second), requests, strict=True)
    ]

    assert verdict == Verdict(applied=True, staleness=1, step=2)
    assert retries == [
        Verdict(applied=True, staleness=0, step=1, duplicate=True),
        Verdict(applied=True, staleness=2, step=3),
    ]
    assert client.pull().params["A"].tolist() == [1.0, 1.0, 1.0]
    assert server.status().step == 3


def test_a_half_sent_push_holds_nobody_up_and_can_be_sent_again(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    send_half: SendHalf,
    mark: Mark,
) -> None:
    """Its caller goes away with half of the body unsent."""
    server = start_server()
    client = connect(server.address)
    client.initialize({"A": np.zeros(4, np.float32)})
    snapshot = client.pull()
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 4), step_read=0)

    call, _ = send_half(stub, request)
    verdict = client.push({"A": mark(1, 4)}, snapshot)
    call.cancel()
    retry = Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))

    assert call.cancelled()
    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert retry == Verdict(applied=True, staleness=1, step=2)
    assert client.pull().params["A"].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_push_whose_caller_goes_when_it_is_next_is_not_applied(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    send_half: SendHalf,
    mark: Mark,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
) -> None:
    """Its header has been judged and its body has come; another one is applied."""
    server = start_server(slow_rule)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    snapshot = client.pull()
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 2), step_read=0)
    waiting, send_rest = send_half(stub, request)

    with ThreadPoolExecutor(1) as pool, hold() as reached:
        holder = pool.submit(client.push, {"A": mark(1, 2)}, snapshot)
        assert reached.wait(TIMEOUT_S)
        send_rest()
        assert stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0
        waiting.cancel()
        assert stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0
    retry = Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))

    assert holder.result() == Verdict(applied=True, staleness=0, step=1)
    assert retry == Verdict(applied=True, staleness=1, step=2)
    assert client.pull().params["A"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("way", ["cancelled", "expired"])
def test_a_push_that_ends_while_the_disk_takes_it_is_applied(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    use_disk: UseDisk,
    tmp_path: Path,
    way: str,
) -> None:
    """It is a duplicate when it comes again; nobody is shown it before it is kept."""
    disk = VirtualDisk(random.Random(0))
    use_disk(disk)
    server = start_server(durability="log", data_dir=tmp_path)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 2), step_read=0)
    reached, opened = threading.Event(), threading.Event()

    def wait(operation: Operation) -> None:
        if operation.kind == "sync" and operation.path.suffix == ".log":
            reached.set()
            assert opened.wait(TIMEOUT_S)

    disk.on_operation = wait
    with ThreadPoolExecutor(1) as pool:
        timeout = TIMEOUT_S if way == "cancelled" else 0.5
        pushed = stub.Push.future(request, timeout=timeout)
        assert reached.wait(TIMEOUT_S)
        if way == "cancelled":
            pushed.cancel()
        else:
            assert pushed.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        meanwhile = client.pull()
        other = pool.submit(client.push, {"A": mark(1, 2)}, meanwhile)
        again = stub.Push.future(request, timeout=TIMEOUT_S)
        assert stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0
        opened.set()

        retry = Verdict.from_proto(again.result())
        verdict = other.result()

    assert (meanwhile.step, meanwhile.params["A"].tolist()) == (0, [0.0, 0.0])
    assert retry == Verdict(applied=True, staleness=0, step=1, duplicate=True)
    assert verdict == Verdict(applied=True, staleness=1, step=2)
    assert client.pull().params["A"].tolist() == [1.0, 1.0]


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["none", "log"])
def test_with_deadlines_of_0_to_2_latencies_the_variables_are_as_acknowledged(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    in_parallel: InParallel,
    size: Size,
    tmp_path: Path,
    durability: str,
) -> None:
    """By 6 workers, each push repeated with its own id until it is answered."""
    workers, probes, pushes = 6, 10, size(50, 200)
    each = probes + pushes
    elements = workers * each
    data_dir = tmp_path if durability == "log" else None
    server = start_server(max_staleness=4, durability=durability, data_dir=data_dir)
    client = connect(server.address)
    client.initialize({"A": np.zeros(elements, np.float32)})

    def work(worker: int) -> list[tuple[int, int, Verdict]]:
        stub, make = join_raw(server.address, f"{worker}")
        shares = [2 * i / (pushes - 1) for i in range(pushes)]
        random.Random(worker).shuffle(shares)
        log, latencies, step = [], list[float](), 0
        for seq in range(1, each + 1):
            number = worker * each + seq - 1
            request = make(seq, mark(number, elements), step_read=step)
            if seq <= probes:
                deadline, began = TIMEOUT_S, time.perf_counter()
            else:
                deadline = shares.pop() * statistics.median(latencies)
            verdict, expired = _push_until_answered(stub, request, deadline)
            if seq <= probes:
                latencies.append(time.perf_counter() - began)
            step = verdict.step
            log.append((number, expired, verdict))
        return log

    logs = in_parallel([partial(work, i) for i in range(workers)])
    final = client.pull()
    server.stop()  # What expired may have come late: now it is done.

    log = [entry for worker_log in logs for entry in worker_log]
    expected = np.zeros(elements, np.float32)
    for number, expired, verdict in log:
        expected[number] = verdict.applied
        assert expired or not verdict.duplicate
    assert final.params["A"].tolist() == expected.tolist()
    applied = sorted(verdict.step for _, _, verdict in log if verdict.applied)
    assert applied == list(range(1, final.step + 1))
    status = server.status()
    assert (status.counts.applied, status.counts.judged) == (final.step, elements)
    assert status.staleness == Counter(verdict.staleness for _, _, verdict in log)
    assert set(status.counts.rejected) <= {"CALL_CANCELLED", "SEQUENCE"}


def _push_until_answered(
    stub: Any, request: pb.PushRequest, deadline: float
) -> tuple[Verdict, int]:
    """Return the verdict, and how many attempts had expired before it came."""
    expired = 0
    while True:
        try:
            with from_status():
                return Verdict.from_proto(stub.Push(request, timeout=deadline)), expired
        except DeadlineError:
            expired += 1
            deadline = min(2 * deadline + 0.001, TIMEOUT_S)
