"""A push is applied once, whatever is lost on its way and however often it comes."""

import threading
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from kit.chaos import ANSWERED, FLIGHT, REPLY, REQUEST, Chaos, DroppingCalls
from kit.relay import Fate, TcpRelay
from psserver.store import Store
from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import SequenceError, SessionSupersededError, from_status
from pswire.values import Reason, Snapshot, Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
JoinRaw = Callable[..., Any]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Hold = Callable[[], AbstractContextManager[threading.Event]]
SendHalf = Callable[..., tuple[Any, Callable[[], None]]]
Size = Callable[[int, int], int]

TIMEOUT_S = 30.0


class Watch(grpc.UnaryUnaryClientInterceptor):
    """Sets an event whenever a push is sent."""

    def __init__(self) -> None:
        self.sent = threading.Event()

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        if details.method.endswith("/Push"):
            self.sent.set()
        return continuation(details, request)


@pytest.fixture
def connect_through(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Connect a client whose calls go through an interceptor."""
    plain = grpc.insecure_channel

    def through(
        interceptor: grpc.UnaryUnaryClientInterceptor, address: str, **settings: Any
    ) -> psworker.Client:
        with monkeypatch.context() as patch:
            patch.setattr(
                grpc,
                "insecure_channel",
                lambda *args: grpc.intercept_channel(plain(*args), interceptor),
            )
            return connect(address, **settings)

    return through


def assert_applied_once(
    server: psserver.Server,
    final: Snapshot[Any],
    verdicts: Mapping[int, Verdict],
) -> None:
    """Compare a server with what its workers were told.

    Args:
        server: It has `A` alone, in which the gradients are those of `mark`.
        final: Its last snapshot.
        verdicts: On each push, by its number: all that there are.
    """
    applied = [float(verdicts[number].applied) for number in range(len(verdicts))]
    assert final.params["A"].tolist() == applied
    steps = sorted(each.step for each in verdicts.values() if each.applied)
    assert steps == list(range(1, final.step + 1))
    status = server.status()
    assert (status.counts.applied, status.counts.judged) == (final.step, len(verdicts))
    assert status.staleness == Counter(each.staleness for each in verdicts.values())


@pytest.mark.soak
def test_with_many_calls_lost_the_variables_are_what_the_acknowledgements_say(
    start_server: StartServer,
    connect_through: Connect,
    mark: Mark,
    in_parallel: InParallel,
    size: Size,
) -> None:
    """2,000 pushes and exchanges by 8 workers: 10 % of each kind of loss.

    In the soak they are 20,000, half of them lost.
    """
    workers, total, share = 8, size(2_000, 20_000), size(30, 50) / 3
    server = start_server(max_staleness=6)
    odds = f"-1:{share}:{share}:{share}"
    plan = f"Push={odds},Exchange={odds}"
    chaos = [Chaos(plan, seed) for seed in range(workers)]
    clients = [connect_through(each, server.address) for each in chaos]
    clients[0].initialize({"A": np.zeros(total, np.float32)})

    def work(worker: int) -> list[tuple[int, Verdict, list[str]]]:
        client, log = clients[worker], []
        snapshot = client.pull()
        for number in range(worker, total, workers):
            gradients = {"A": mark(number, total)}
            chaos[worker].fates.clear()
            if number // workers % 2:
                verdict, snapshot = client.exchange(gradients, snapshot)
            else:
                verdict = client.push(gradients, snapshot)
                snapshot = client.pull()
            log.append((number, verdict, list(chaos[worker].fates)))
        return log

    logs = in_parallel([partial(work, i) for i in range(workers)])
    final = clients[0].pull()
    server.stop()  # What was cut off in flight may have come late: now it is done.

    log = [entry for each in logs for entry in each]
    assert len(log) == total
    for _, verdict, fates in log:
        assert fates[-1] == ANSWERED
        if REPLY in fates:
            assert verdict.duplicate
        elif FLIGHT not in fates:
            assert not verdict.duplicate
    verdicts = {number: verdict for number, verdict, _ in log}
    assert_applied_once(server, final, verdicts)
    fates = Counter(fate for _, _, fates in log for fate in fates)
    assert min(fates[REQUEST], fates[REPLY]) > 0
    status = server.status()
    late = status.counts.duplicate + sum(status.counts.rejected.values())
    assert fates[REPLY] <= late <= fates[REPLY] + fates[FLIGHT]
    assert set(status.counts.rejected) <= {"CALL_CANCELLED", "SEQUENCE"}


def test_of_a_server_that_drops_messages_each_push_is_applied_once(
    start_server: StartServer,
    connect: Connect,
    mark: Mark,
    in_parallel: InParallel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenth of all requests and of all replies, on both ways to it."""
    workers, total = 8, 240
    servers: list[DroppingCalls] = []

    def make(store: Store) -> DroppingCalls:
        servers.append(DroppingCalls(store, percent=10, seed=1))
        return servers[-1]

    monkeypatch.setattr("psserver.server.Calls", make)
    server = start_server(max_staleness=6)
    clients = [connect(server.address) for _ in range(workers)]
    clients[0].initialize({"A": np.zeros(total, np.float32)})

    def work(worker: int) -> dict[int, Verdict]:
        snapshot, verdicts = clients[worker].pull(), {}
        for number in range(worker, total, workers):
            gradients = {"A": mark(number, total)}
            verdicts[number], snapshot = clients[worker].exchange(gradients, snapshot)
        return verdicts

    verdicts = dict(ChainMap(*in_parallel([partial(work, i) for i in range(workers)])))

    assert_applied_once(server, clients[0].pull(), verdicts)
    (calls,) = servers
    assert min(calls.dropped["push", REQUEST], calls.dropped["push", REPLY]) > 0
    counts = server.status().counts
    assert (counts.duplicate, counts.rejected) == (calls.dropped["push", REPLY], {})


@pytest.mark.parametrize("what", ["requests", "replies"])
def test_a_push_whose_connection_breaks_on_its_way_is_applied_once(
    start_server: StartServer, mark: Mark, what: str
) -> None:
    """Its bytes were lost before, or those of its answer; nobody knows how far it came.

    What is lost may also be what HTTP/2 has to say at that moment.
    """
    server = start_server(max_staleness=0)
    with (
        TcpRelay(server.address) as relay,
        psworker.connect(relay.address, same_host=False) as client,
        ThreadPoolExecutor(1, "test") as pool,
    ):
        client.initialize({"A": np.zeros(1, np.float32)})
        snapshot = client.pull()
        lose = getattr(relay, f"set_{what}")

        lost = lose(Fate.SWALLOW)
        pushing = pool.submit(client.push, {"A": mark(0, 1)}, snapshot)
        assert lost.wait(TIMEOUT_S)
        lose(Fate.PASS)
        relay.cut()
        verdict = pushing.result(TIMEOUT_S)

        assert client.pull().params["A"].tolist() == [1.0]
    first = Verdict(applied=True, staleness=0, step=1)
    assert verdict in (first, first.repeated())
    assert server.status().counts.duplicate == verdict.duplicate


@pytest.mark.parametrize("limit", [0, None])
def test_of_16_pushes_with_one_id_at_once_one_is_applied(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    in_parallel: InParallel,
    limit: int | None,
) -> None:
    """40 rounds, each of 16 threads with connections of their own."""
    threads, rounds = 16, 40
    server = start_server(max_staleness=limit)
    client = connect(server.address)
    client.initialize({"A": np.zeros(rounds, np.float32)})
    joined = [join_raw(server.address, "shared") for _ in range(threads)]
    together = threading.Barrier(threads)

    def repeat(stub: Any, make: Callable[..., pb.PushRequest]) -> list[Verdict]:
        verdicts = []
        for number in range(rounds):
            request = make(number + 1, mark(number, rounds), step_read=number)
            together.wait(TIMEOUT_S)
            reply = stub.Push(request, timeout=TIMEOUT_S)
            verdicts.append(Verdict.from_proto(reply))
        return verdicts

    got = in_parallel([partial(repeat, *raw) for raw in joined])

    for number in range(rounds):
        first = Verdict(applied=True, staleness=0, step=number + 1)
        assert Counter(verdicts[number] for verdicts in got) == {
            first: 1,
            first.repeated(): threads - 1,
        }
    assert client.pull().params["A"].tolist() == [1.0] * rounds
    assert server.status().counts.duplicate == rounds * (threads - 1)


@pytest.mark.parametrize("limit", [0, None])
def test_a_push_that_comes_again_while_it_is_being_applied_is_applied_once(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
    limit: int | None,
) -> None:
    """Its first attempt has no verdict yet when 15 more arrive."""
    server = start_server(slow_rule, max_staleness=limit)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 2), step_read=0)

    with hold() as reached:
        first = stub.Push.future(request, timeout=TIMEOUT_S)
        assert reached.wait(TIMEOUT_S)
        retries = [stub.Push.future(request, timeout=TIMEOUT_S) for _ in range(15)]
        # Sent after the retries on their connection, so they have come when it has.
        assert stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S).header.step == 0

    verdict = Verdict(applied=True, staleness=0, step=1)
    assert Verdict.from_proto(first.result()) == verdict
    assert [Verdict.from_proto(retry.result()) for retry in retries] == [
        verdict.repeated()
    ] * 15
    assert client.pull().params["A"].tolist() == [1.0, 0.0]


def test_a_push_that_comes_again_while_half_of_it_has_been_received_is_applied_once(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    send_half: SendHalf,
    mark: Mark,
) -> None:
    """The retry overtakes the first attempt, whose header was judged before it."""
    server = start_server(max_staleness=0)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 2), step_read=0)

    first, send_rest = send_half(stub, request)
    retry = Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))
    send_rest()

    assert retry == Verdict(applied=True, staleness=0, step=1)
    assert Verdict.from_proto(first.result(TIMEOUT_S)) == retry.repeated()
    assert client.pull().params["A"].tolist() == [1.0, 0.0]


def test_a_client_that_loses_patience_learns_what_its_first_attempt_did(
    start_server: StartServer,
    connect: Connect,
    connect_through: Connect,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
    mark: Mark,
) -> None:
    """Its attempts time out while the rule runs; the verdict says applied, once."""
    server, watch = start_server(slow_rule, max_staleness=0), Watch()
    connect(server.address).initialize({"A": np.zeros(2, np.float32)})
    client = connect_through(watch, server.address, timeout_s=0.1)
    snapshot = client.pull()

    with ThreadPoolExecutor(1) as pool, hold() as reached:
        pushed = pool.submit(client.push, {"A": mark(0, 2)}, snapshot)
        assert reached.wait(TIMEOUT_S)
        watch.sent.clear()
        assert watch.sent.wait(TIMEOUT_S)

    assert pushed.result() == Verdict(applied=True, staleness=0, step=1, duplicate=True)
    assert client.pull().params["A"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("others", [0, 5])
def test_a_retry_at_limit_0_repeats_that_the_push_was_applied(
    start_server: StartServer,
    connect: Connect,
    join_raw: JoinRaw,
    mark: Mark,
    others: int,
) -> None:
    """By then it is stale: by its own step, and by those of 5 pushes of another."""
    server = start_server(max_staleness=0)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 2), step_read=0)

    first = Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))
    for _ in range(others):
        assert client.push({"A": mark(1, 2)}, client.pull()).applied
    retry = Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S))

    assert first == Verdict(applied=True, staleness=0, step=1)
    assert retry == first.repeated()
    assert client.pull().params["A"].tolist() == [1.0, others]


def test_a_retry_of_a_dropped_push_repeats_that_it_was_dropped(
    start_server: StartServer, connect: Connect, join_raw: JoinRaw, mark: Mark
) -> None:
    """It is counted as a duplicate, and neither as judged nor as dropped again."""
    server = start_server(max_staleness=0)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    client.push({"A": mark(1, 2)}, client.pull())
    stub, make = join_raw(server.address, "s")
    request = make(1, mark(0, 2), step_read=0)

    first, retry = (
        Verdict.from_proto(stub.Push(request, timeout=TIMEOUT_S)) for _ in range(2)
    )

    assert first == Verdict(applied=False, staleness=1, step=1, reason=Reason.STALE)
    assert retry == first.repeated()
    assert client.pull().params["A"].tolist() == [0.0, 1.0]
    status = server.status()
    assert (status.counts.dropped, status.counts.duplicate) == (1, 1)
    assert status.staleness == {0: 1, 1: 1}


def test_a_push_older_than_its_sessions_last_is_refused(
    start_server: StartServer, connect: Connect, join_raw: JoinRaw, mark: Mark
) -> None:
    """Both one that was applied and one that was never seen before."""
    server = start_server()
    client = connect(server.address)
    client.initialize({"A": np.zeros(4, np.float32)})
    stub, make = join_raw(server.address, "s")
    for number, seq in enumerate((1, 3)):
        stub.Push(make(seq, mark(number, 4), step_read=0), timeout=TIMEOUT_S)

    for seq, number in ((1, 0), (2, 2)):
        request = make(seq, mark(number, 4), step_read=0)
        with (
            pytest.raises(SequenceError, match=f"seq: expected more than 3, got {seq}"),
            from_status(),
        ):
            stub.Push(request, timeout=TIMEOUT_S)

    final = client.pull()
    assert (final.step, final.params["A"].tolist()) == (2, [1.0, 1.0, 0.0, 0.0])


def test_a_restarted_workers_first_pushes_are_not_taken_for_its_old_ones(
    start_server: StartServer, connect: Connect, mark: Mark
) -> None:
    """Its new process numbers its pushes from 1 again, under the same name."""
    server = start_server()
    with connect(server.address, name="w") as before:
        before.initialize({"A": np.zeros(4, np.float32)})
        for number in (0, 1):
            before.push({"A": mark(number, 4)}, step_read=0)
    after = connect(server.address, name="w")

    verdicts = [after.push({"A": mark(n, 4)}, step_read=0) for n in (2, 3)]

    assert verdicts == [
        Verdict(applied=True, staleness=2, step=3),
        Verdict(applied=True, staleness=3, step=4),
    ]
    assert after.pull().params["A"].tolist() == [1.0] * 4
    (row,) = server.status().workers
    assert (row.name, row.counts.applied) == ("w", 4)


def test_the_old_process_of_a_relaunched_worker_is_told_to_stop(
    start_server: StartServer, connect: Connect, join_raw: JoinRaw, mark: Mark
) -> None:
    """Neither a new push nor the retry of an applied one does anything."""
    server = start_server()
    zombie, make = join_raw(server.address, "old", "w")
    client = connect(server.address, name="other")
    client.initialize({"A": np.zeros(4, np.float32)})
    requests = [make(seq, mark(seq, 4), step_read=0) for seq in (1, 2)]
    zombie.Push(requests[0], timeout=TIMEOUT_S)
    relaunched = connect(server.address, name="w")

    for request in requests:
        with (
            pytest.raises(
                SessionSupersededError,
                match="expected the newest of worker w, got old; another process",
            ),
            from_status(),
        ):
            zombie.Push(request, timeout=TIMEOUT_S)
    verdict = relaunched.push({"A": mark(3, 4)}, step_read=0)

    assert verdict == Verdict(applied=True, staleness=1, step=2)
    assert relaunched.pull().params["A"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_superseded_client_is_told_so(
    start_server: StartServer, connect: Connect, mark: Mark
) -> None:
    """The same through the client, which does not try to join again."""
    server = start_server()
    old = connect(server.address, name="w")
    old.initialize({"A": np.zeros(2, np.float32)})
    snapshot = old.pull()
    connect(server.address, name="w")

    with pytest.raises(SessionSupersededError, match="session: expected the newest"):
        old.push({"A": mark(0, 2)}, snapshot)

    assert server.status().step == 0
