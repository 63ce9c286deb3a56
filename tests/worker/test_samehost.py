"""Going past gRPC on the server's host, and going on over it when that fails."""

import gc
import os
import random
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import psserver
import psworker
from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import (
    CallCancelledError,
    DeadlineError,
    NonFiniteError,
    ServerUnavailableError,
    VariableMismatchError,
)
from pswire.layout import Layout
from pswire.samehost import MAX_INLINE_NBYTES, Frame, FrameSocket, Kind
from pswire.values import PushHeader, Verdict
from psworker.connection import Connection
from psworker.remote import Remote

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory without a name"
)

Array = npt.NDArray[np.float32]
StartServer = Callable[..., psserver.Server]
ConnectNear = Callable[..., psworker.Client]
Redirect = Callable[[Callable[[str], str]], None]

WAIT_S = 20.0
SIZE = 2**18  # Elements: 1 MiB, far more than a message carries.
SEED = 7

BASE = np.arange(SIZE, dtype=np.float32) % 1000  # With small integers, sums are exact.
PARAMS = {"w": BASE}
UP = {"w": np.full(SIZE, -1, np.float32)}  # One push adds 1 everywhere.
SMALL = {"w": np.zeros(4, np.float32)}
SMALL_UP = {"w": np.full(4, -1, np.float32)}


class UnixRelay:
    """A unix socket that passes frames on to the server's, one call after another.

    Attributes:
        path: Where it listens.
        kinds: What came from workers, in order, all connections together.
        before: {kind: function}, called once each, before the next request of the
            kind is passed on; `lose` in it loses the request, and the connection.
        after: The same, called before the answer is passed back.
    """

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self.before: dict[int, Callable[[], object]] = {}
        self.after: dict[int, Callable[[], object]] = {}
        self._home = tempfile.TemporaryDirectory(prefix="relay-")
        self.path = str(Path(self._home.name) / "socket")
        self._target = ""
        self._ends: list[socket.socket] = []
        self._passing: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._accepting = threading.Thread(target=self._accept, name="unix relay")
        self._accepting.start()

    def instead_of(self, target: str) -> str:
        """Take the place of a socket: return the path of this one."""
        self._target = target
        return self.path

    def lose(self) -> None:
        """As one of `before` or `after`: lose what would have been passed."""
        raise ConnectionError("lost on the way")

    def cut(self) -> None:
        """Fail all connections, in whatever state they are."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop."""
        self._listener.shutdown(socket.SHUT_RD)
        self._accepting.join()
        self._listener.close()
        self.cut()
        for passing in self._passing:
            passing.join()
        self._home.cleanup()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                worker, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._ends += [worker, server]
                passing = threading.Thread(
                    target=self._pass, args=(worker, server), name="unix relay"
                )
                self._passing.append(passing)
                passing.start()

    def _pass(self, worker: socket.socket, server: socket.socket) -> None:
        requests, answers = FrameSocket(worker), FrameSocket(server)
        with worker, server, suppress(OSError):
            server.connect(self._target)
            self._pass_answer(answers, requests)
            while (request := requests.receive()) is not None:
                self._pass_request(request, answers)
                if request.kind not in (Kind.ATTACH, Kind.DETACH):
                    after = self.after.pop(request.kind, lambda: None)
                    self._pass_answer(answers, requests, after)

    def _pass_request(self, request: Frame, answers: FrameSocket) -> None:
        self.kinds.append(request.kind)
        try:
            self.before.pop(request.kind, lambda: None)()
            answers.send(request)
        finally:
            for descriptor in request.descriptors:
                os.close(descriptor)

    def _pass_answer(
        self,
        answers: FrameSocket,
        requests: FrameSocket,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        answer = answers.receive()
        if answer is None:
            raise ConnectionError("the server has closed")
        after()
        requests.send(answer)


@pytest.fixture
def connect_near() -> Iterator[ConnectNear]:
    """Connect clients that close with the test, with the settings' own defaults."""
    with ExitStack() as stack:

        def connect(address: str, **settings: Any) -> psworker.Client:
            return stack.enter_context(psworker.connect(address, **settings))

        yield connect


@pytest.fixture
def redirect(monkeypatch: pytest.MonkeyPatch) -> Redirect:
    """Make clients learn of another socket than the server's from its JoinReply."""
    join = Remote.join

    def redirect(path_for: Callable[[str], str]) -> None:
        def joined(
            remote: Remote, request: pb.JoinRequest, timeout: float
        ) -> pb.JoinReply:
            reply = join(remote, request, timeout)
            reply.same_host = path_for(reply.same_host)
            return reply

        monkeypatch.setattr(Remote, "join", joined)

    return redirect


@pytest.fixture
def start_unix_relay(redirect: Redirect) -> Iterator[Callable[[], UnixRelay]]:
    """Put relays before the server's socket, each for the clients of its time."""
    with ExitStack() as stack:

        def start() -> UnixRelay:
            relay = UnixRelay()
            stack.callback(relay.close)
            redirect(relay.instead_of)
            return relay

        yield start


@pytest.fixture
def unix_relay(start_unix_relay: Callable[[], UnixRelay]) -> UnixRelay:
    """Put a relay before the server's socket; it ends with the test."""
    return start_unix_relay()


@pytest.fixture
def initialized(
    start_server: StartServer, connect_near: ConnectNear
) -> Callable[..., str]:
    """Start a server that has variables already; returns its address."""

    def start(params: Any, **settings: Any) -> str:
        address = start_server(**settings).address
        connect_near(address, same_host=False).initialize(params)
        return address

    return start


def shared_memories() -> int:
    """Return how many mappings of shared memory this process has, on both sides."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:asyncps" in line for line in maps)


# When it is used


@pytest.mark.parametrize(
    ("server_settings", "client_settings", "calls"),
    [
        ({}, {}, []),
        ({"same_host": False}, {}, ["Pull", "Push", "Exchange", "Status"]),
        ({}, {"same_host": False}, ["Pull", "Push", "Exchange", "Status"]),
    ],
    ids=["by itself", "not offered", "not wanted"],
)
def test_grpc_is_passed_by_unless_one_side_does_not_want_that(
    initialized: Any,
    connect_near: ConnectNear,
    start_relay: Any,
    server_settings: dict[str, Any],
    client_settings: dict[str, Any],
    calls: list[str],
) -> None:
    """The relay sees all that goes over gRPC, which always are the joins."""
    relay = start_relay(initialized(SMALL, **server_settings))
    client = connect_near(relay.address, **client_settings)

    snapshot = client.pull()
    client.push(SMALL_UP, snapshot)
    client.exchange(SMALL_UP, snapshot)
    status = client.status()

    assert (status.step, status.counts.applied) == (2, 2)
    assert relay.methods() == ["Join", *calls]


def test_who_brings_the_variables_goes_past_grpc_from_then_on(
    start_server: StartServer, connect_near: ConnectNear, start_relay: Any
) -> None:
    """Before, a client does not know how much memory a snapshot takes."""
    relay = start_relay(start_server().address)
    client = connect_near(relay.address)

    client.initialize(PARAMS)
    calls_before = len(relay.calls)
    verdict, new = client.exchange(UP, client.pull())

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    np.testing.assert_array_equal(new.params["w"], BASE + 1)
    assert len(relay.calls) == calls_before


@pytest.mark.parametrize("kind", ["push", "exchange"])
@pytest.mark.parametrize(
    ("floats", "integers"),
    [
        (MAX_INLINE_NBYTES // 4, 0),
        (MAX_INLINE_NBYTES // 4 + 1, 0),
        (16, MAX_INLINE_NBYTES // 4),
        (SIZE, SIZE),
    ],
    ids=["inline", "shared", "only the snapshot shared", "large"],
)
def test_every_bit_arrives_however_the_body_travels(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    kind: str,
    floats: int,
    integers: int,
) -> None:
    """Integers have no gradient, so the two directions may differ in their way."""
    rng = np.random.default_rng(SEED)
    values, gradient = rng.integers(-99, 99, (2, floats)).astype(np.float32)
    params = {
        "w": values,
        "n": rng.integers(-(2**31), 2**31, integers, np.int32),
        "b": np.asarray([1.5, -0.0], ml_dtypes.bfloat16),
        "flag": np.asarray(True),
        "none": np.zeros((0, 3), np.float32),
    }
    gradients = {
        "w": gradient,
        "b": np.zeros(2, ml_dtypes.bfloat16),
        "none": params["none"],
    }
    client = connect_near(initialized(params))

    first = client.pull()
    if kind == "push":
        client.push(gradients, first)
        second = client.pull()
    else:
        second = client.exchange(gradients, first)[1]

    after = {**params, "w": values - gradient}
    for snapshot, expected in ((first, params), (second, after)):
        assert {n: a.tobytes() for n, a in snapshot.params.items()} == {
            n: np.asarray(a).tobytes() for n, a in expected.items()
        }
        assert all(a.dtype == expected[n].dtype for n, a in snapshot.params.items())
    assert Kind.PULL in unix_relay.kinds


def test_a_refusal_is_the_same_error_and_ends_nothing(
    initialized: Any, connect_near: ConnectNear, unix_relay: UnixRelay
) -> None:
    """The error table holds here too, and the next calls still pass gRPC by."""
    client = connect_near(initialized(PARAMS))
    snapshot = client.pull()
    gradients = {"w": np.where(BASE == 0, np.nan, BASE)}

    for offer in (client.push, client.exchange):
        with pytest.raises(NonFiniteError, match=r"^w: expected finite .* at \(0,\)"):
            offer(gradients, snapshot)

    calls = len(unix_relay.kinds)
    assert client.exchange(UP, snapshot)[0] == Verdict(True, 0, 1)
    assert unix_relay.kinds[calls:] == [Kind.EXCHANGE]


@pytest.mark.parametrize("attempt", range(5))
def test_gradients_that_need_more_memory_than_before_get_it(
    initialized: Any, start_relay: Any, attempt: int
) -> None:
    """The smaller memory, of gradients that were refused, is let go of at once.

    A client would not have sent them: it knows the variables' shapes.
    """
    relay = start_relay(initialized(PARAMS))
    connection = Connection(
        relay.address,
        worker="w",
        session="s",
        timeout_s=WAIT_S,
        outage_s=0.0,
        same_host=True,
    )

    def offer(call: Any, seq: int, gradients: dict[str, Array]) -> Any:
        layout = Layout.of(gradients)
        generation = connection.generation
        header = PushHeader("s", seq, generation, 0, layout.nbytes, layout)
        return call(header, layout, gradients)

    with closing(connection):
        connection.join()
        with pytest.raises(VariableMismatchError, match=r"^w: expected \(262144,\) f"):
            offer(connection.push, 1, {"w": BASE[: SIZE // 2]})
        verdict, new = offer(connection.exchange, 2, UP)

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    np.testing.assert_array_equal(new.params["w"], BASE + 1)
    assert relay.methods() == ["Join"]


# What the caller holds


@pytest.mark.parametrize("held_at_once", [1, 3, 6])
@pytest.mark.parametrize("how", ["pulled", "exchanged", "lent to JAX", "a part"])
def test_what_the_caller_holds_keeps_every_bit(
    initialized: Any, connect_near: ConnectNear, held_at_once: int, how: str
) -> None:
    """While later snapshots come in, and some of what was held is let go."""
    client = connect_near(initialized(PARAMS))
    held: list[tuple[int, Any]] = []
    snapshot = client.pull()
    part = slice(SIZE // 2, None) if how == "a part" else slice(None)

    for _ in range(3 * held_at_once + 2):
        array: Any = snapshot.params["w"][part]
        if how == "lent to JAX":
            array = jax.device_put(array, may_alias=True)
        held = [*held, (snapshot.step, array)][-held_at_once:]
        del array
        if how == "pulled":
            client.push(UP, snapshot)
            snapshot = client.pull()
        else:
            snapshot = client.exchange(UP, snapshot)[1]
        for step, kept in held:
            np.testing.assert_array_equal(np.asarray(kept), BASE[part] + step)

    assert held[-1][0] == 3 * held_at_once + 1


def test_a_computation_that_runs_reads_the_snapshot_it_was_given(
    initialized: Any, connect_near: ConnectNear
) -> None:
    """JAX may still be at work on it when the caller has long forgotten it."""
    client = connect_near(initialized(PARAMS))
    snapshot = client.pull()
    total = jax.jit(lambda w: (w @ np.ones(SIZE, np.float32)) / SIZE)
    results = []

    for _ in range(12):
        results.append(total(jax.device_put(snapshot.params["w"], may_alias=True)))
        snapshot = client.exchange(UP, snapshot)[1]

    expected = [float(BASE.mean(dtype=np.float64)) + step for step in range(12)]
    np.testing.assert_allclose(np.asarray(results), expected, rtol=1e-4)


@pytest.mark.parametrize("held_at_once", [0, 9])
def test_no_more_memory_is_taken_than_is_held(
    initialized: Any, connect_near: ConnectNear, held_at_once: int
) -> None:
    """Fifty more exchanges attach no memory and leave no file open."""
    gc.collect()
    before = shared_memories()
    client = connect_near(initialized(PARAMS))
    snapshot = client.pull()
    held: list[Any] = []
    memories: list[int] = []
    files: list[int] = []

    for _ in range(60):
        snapshot = client.exchange(UP, snapshot)[1]
        held = [*held, snapshot][len(held) + 1 - held_at_once :]
        memories.append(shared_memories() - before)
        files.append(len(os.listdir("/proc/self/fd")))

    assert 0 < memories[9] <= 10  # Three held, one to come, gradients: on both sides.
    assert set(memories[9:]) == {memories[9]}
    assert files[-1] < files[9] + 10  # gRPC has some that come and go.
    np.testing.assert_array_equal(snapshot.params["w"], BASE + 60)


@pytest.mark.parametrize("first", ["worker", "server"])
def test_when_both_sides_are_closed_all_memory_is_gone(
    start_server: StartServer, first: str
) -> None:
    """But what the caller still holds, which stays as it was."""
    gc.collect()
    before = shared_memories()
    server = start_server()
    with psworker.connect(server.address) as client:
        client.initialize(PARAMS)
        held = client.pull()
        client.exchange(UP, held)
        if first == "server":
            server.stop()
    del client
    server.stop()

    gc.collect()
    kept = shared_memories()

    assert kept == before + 1
    np.testing.assert_array_equal(held.params["w"], BASE)
    del held
    assert shared_memories() == before


def test_a_known_snapshot_takes_no_memory(
    initialized: Any, connect_near: ConnectNear
) -> None:
    """Nothing has changed, so the very arrays come back that the caller holds."""
    client = connect_near(initialized(PARAMS, max_staleness=-1))
    first = client.pull()
    memories = shared_memories()

    second = client.pull()
    verdict, third = client.exchange(UP, first)

    assert np.shares_memory(second.params["w"], first.params["w"])
    assert (verdict.applied, third) == (False, first)
    assert shared_memories() <= memories + 4  # Of the gradients and one to come.


# Another server


@pytest.mark.parametrize("elements", [4, SIZE, 2 * SIZE], ids=["less", "same", "more"])
def test_a_server_with_a_model_of_another_size_takes_its_place(
    start_server: StartServer,
    connect_near: ConnectNear,
    start_relay: Any,
    elements: int,
) -> None:
    """The client finds it, and goes past gRPC there too."""
    first = start_server()
    relay = start_relay(first.address)
    client = connect_near(relay.address)
    client.initialize(PARAMS)
    held = client.exchange(UP, client.pull())[1]
    first.stop()
    second = start_server(port=int(first.address.rpartition(":")[2]))
    values = np.arange(elements, dtype=np.float32)
    connect_near(second.address).initialize({"w": values})

    pulled = client.pull()
    calls = len(relay.calls)
    verdict, new = client.exchange({"w": np.full(elements, -1, np.float32)}, pulled)

    assert len(relay.calls) == calls
    assert verdict == Verdict(applied=True, staleness=0, step=1)
    np.testing.assert_array_equal(pulled.params["w"], values)
    np.testing.assert_array_equal(new.params["w"], values + 1)
    np.testing.assert_array_equal(held.params["w"], BASE + 1)


# A socket that fails


@pytest.mark.parametrize("lost", ["before", "after"], ids=["request", "answer"])
@pytest.mark.parametrize("params", [SMALL, PARAMS], ids=["small", "large"])
@pytest.mark.parametrize("kind", [Kind.PUSH, Kind.EXCHANGE], ids=["push", "exchange"])
def test_a_push_that_is_lost_with_the_socket_is_applied_once(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    kind: Kind,
    params: dict[str, Array],
    lost: str,
) -> None:
    """It goes over gRPC as the same push; limit 0 shows if it was judged anew."""
    client = connect_near(initialized(params, max_staleness=0))
    gradients = {"w": np.full_like(params["w"], -1)}
    snapshot = client.pull()
    getattr(unix_relay, lost)[kind] = unix_relay.lose

    if kind == Kind.PUSH:
        verdict = client.push(gradients, snapshot)
    else:
        verdict, _ = client.exchange(gradients, snapshot)

    assert verdict == Verdict(
        applied=True, staleness=0, step=1, duplicate=lost == "after"
    )
    calls = len(unix_relay.kinds)
    second, new = client.exchange(gradients, client.pull())
    assert second == Verdict(applied=True, staleness=0, step=2)
    np.testing.assert_array_equal(new.params["w"], params["w"] + 2)
    assert len(unix_relay.kinds) == calls
    counts = client.status().counts
    assert (counts.applied, counts.duplicate) == (2, int(lost == "after"))


@pytest.mark.parametrize("lost", ["before", "after"], ids=["request", "answer"])
@pytest.mark.parametrize("kind", [Kind.PUSH, Kind.EXCHANGE], ids=["push", "exchange"])
@pytest.mark.parametrize("wire_dtype", [None, "bf16"])
def test_what_top_k_keeps_outlives_the_socket(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    wire_dtype: str | None,
    kind: Kind,
    lost: str,
) -> None:
    """The push that is repeated over gRPC sends the same elements, not the next."""
    client = connect_near(
        initialized({"w": np.zeros(SIZE, np.float32)}, max_staleness=0),
        compression="topk:0.2",
        wire_dtype=wire_dtype,
    )
    gradient = {"w": -(BASE % 100)}  # Small enough for bfloat16.
    snapshot = client.exchange(gradient, client.pull())[1]
    getattr(unix_relay, lost)[kind] = unix_relay.lose

    if kind == Kind.PUSH:
        verdict = client.push(gradient, snapshot)
    else:
        verdict, _ = client.exchange(gradient, snapshot)

    assert verdict == Verdict(
        applied=True, staleness=0, step=2, duplicate=lost == "after"
    )
    half_way = np.count_nonzero(client.pull().params["w"])
    for _ in range(7):
        client.push({"w": np.zeros(SIZE, np.float32)}, client.pull())
    assert half_way < np.count_nonzero(gradient["w"])
    np.testing.assert_array_equal(client.pull().params["w"], -2 * gradient["w"])


@pytest.mark.parametrize("lost", ["before", "after"], ids=["request", "answer"])
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (Kind.PULL, lambda client: client.pull().step),
        (Kind.STATUS, lambda client: client.status().step),
        (Kind.INITIALIZE, lambda client: int(client.initialize(SMALL))),
    ],
    ids=["pull", "status", "initialize"],
)
def test_any_other_call_that_is_lost_with_the_socket_is_repeated(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    kind: Kind,
    call: Callable[[psworker.Client], int],
    lost: str,
) -> None:
    """The caller gets the answer of gRPC, and no error."""
    client = connect_near(initialized(PARAMS))
    getattr(unix_relay, lost)[kind] = unix_relay.lose

    answer = call(client)

    assert answer == 0
    assert unix_relay.kinds[-1] == kind


def test_a_socket_that_fails_while_the_update_runs_loses_no_push(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    in_thread: Any,
) -> None:
    """Cut from the outside, while the client waits: the answer finds nobody."""
    client = connect_near(initialized(PARAMS))
    snapshot = client.pull()
    answered, cut = threading.Event(), threading.Event()

    def hold() -> None:
        answered.set()
        assert cut.wait(WAIT_S)

    unix_relay.after[Kind.EXCHANGE] = hold
    exchanging = in_thread(client.exchange, UP, snapshot)
    assert answered.wait(WAIT_S)
    unix_relay.cut()
    cut.set()

    verdict, new = exchanging.result(WAIT_S)
    assert verdict == Verdict(applied=True, staleness=0, step=1, duplicate=True)
    np.testing.assert_array_equal(new.params["w"], BASE + 1)


def test_pushes_of_many_workers_with_failures_anywhere_count_once_each(
    initialized: Any,
    connect_near: ConnectNear,
    start_unix_relay: Callable[[], UnixRelay],
    in_thread: Any,
) -> None:
    """Push k adds 1 to element k; every socket fails once, at a seeded place."""
    workers, pushes, size = 16, 6, 16384
    plan = random.Random(SEED)
    address = initialized({"w": np.zeros(size, np.float32)}, max_staleness=None)
    losses = [plan.choice(["before", "after"]) for _ in range(workers)]

    def work(
        worker: int, client: psworker.Client, relay: UnixRelay, fail_at: int
    ) -> list[Verdict]:
        verdicts = []
        snapshot = client.pull()
        for number in range(pushes):
            gradient = np.zeros(size, np.float32)
            gradient[worker * pushes + number] = -1
            kind = (Kind.PUSH, Kind.EXCHANGE)[(worker + number) % 2]
            if number == fail_at:
                getattr(relay, losses[worker])[kind] = relay.lose
            if kind == Kind.PUSH:
                verdicts.append(client.push({"w": gradient}, snapshot))
            else:
                verdict, snapshot = client.exchange({"w": gradient}, snapshot)
                verdicts.append(verdict)
        return verdicts

    working = []
    for worker in range(workers):
        relay = start_unix_relay()
        client = connect_near(address)
        fail_at = plan.randrange(pushes)
        working.append(in_thread(work, worker, client, relay, fail_at))
    verdicts = [verdict for each in working for verdict in each.result(WAIT_S)]

    last = connect_near(address, same_host=False)
    counts, total = last.status().counts, workers * pushes
    assert sorted(verdict.step for verdict in verdicts) == list(range(1, total + 1))
    assert all(verdict.applied for verdict in verdicts)
    assert (counts.applied, counts.dropped) == (total, 0)
    assert counts.duplicate == losses.count("after")
    assert sum(verdict.duplicate for verdict in verdicts) == counts.duplicate
    np.testing.assert_array_equal(last.pull().params["w"], np.arange(size) < total)


@pytest.mark.parametrize("way", ["before", "after"], ids=["request", "answer"])
def test_an_answer_that_does_not_come_in_time_is_asked_for_over_grpc(
    initialized: Any, connect_near: ConnectNear, unix_relay: UnixRelay, way: str
) -> None:
    """The socket is given up: an answer that is late must not be another's."""
    address = initialized(SMALL)
    snapshot = connect_near(address, same_host=False).pull()
    client = connect_near(address, timeout_s=0.3)
    given_up = threading.Event()
    getattr(unix_relay, way)[Kind.PUSH] = lambda: given_up.wait(WAIT_S)

    verdict = client.push(SMALL_UP, snapshot)

    given_up.set()
    assert verdict == Verdict(True, 0, 1, duplicate=way == "after")
    assert client.status().counts.applied == 1
    np.testing.assert_array_equal(client.pull().params["w"], np.ones(4))
    assert unix_relay.kinds == [Kind.PUSH]


def test_an_answer_may_take_longer_than_it_may_take_to_connect(
    initialized: Any, connect_near: ConnectNear, unix_relay: UnixRelay
) -> None:
    """A call has its own time; what has to come within a second is the greeting."""
    client = connect_near(initialized(SMALL))
    snapshot = client.pull()
    unix_relay.after[Kind.PUSH] = lambda: threading.Event().wait(1.1)

    verdict = client.push(SMALL_UP, snapshot)

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert client.status().step == 1
    assert unix_relay.kinds == [Kind.PULL, Kind.PUSH, Kind.STATUS]


def test_a_server_that_answers_nowhere_runs_into_the_deadline(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    start_relay: Any,
) -> None:
    """First here, then over gRPC, where patience ends."""
    relay = start_relay(initialized(SMALL))
    client = connect_near(relay.address, timeout_s=0.5, outage_s=0.5)
    given_up = threading.Event()
    unix_relay.before[Kind.STATUS] = lambda: given_up.wait(WAIT_S)
    relay.before["Status"] = lambda: given_up.wait(WAIT_S)

    try:
        with pytest.raises(DeadlineError, match=rf"^{relay.address}: no answer for"):
            client.status()
    finally:
        given_up.set()

    assert (unix_relay.kinds[-1], relay.methods()[-1]) == (Kind.STATUS, "Status")


@pytest.mark.parametrize("call", ["pull", "status"])
def test_closing_wakes_a_thread_that_waits(
    initialized: Any,
    connect_near: ConnectNear,
    unix_relay: UnixRelay,
    in_thread: Any,
    call: str,
) -> None:
    """Long before its deadline, and it does not go on over gRPC."""
    client = connect_near(initialized(PARAMS), timeout_s=600, outage_s=600)
    held, closed = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        closed.wait(WAIT_S)

    unix_relay.before[Kind[call.upper()]] = hold
    waiting = in_thread(getattr(client, call))
    assert held.wait(WAIT_S)

    client.close()

    try:
        with pytest.raises(
            (ServerUnavailableError, CallCancelledError), match=r"clos|descriptor"
        ):
            waiting.result(WAIT_S)
    finally:
        closed.set()


def test_threads_that_share_a_client_get_each_its_own_answer(
    initialized: Any, connect_near: ConnectNear, in_thread: Any
) -> None:
    """Pushes, exchanges, pulls and questions at once, over one socket."""
    client = connect_near(initialized(PARAMS))
    start = client.pull()
    together = threading.Barrier(8)
    rounds = 6

    def push() -> list[Verdict]:
        together.wait(WAIT_S)
        return [client.push(UP, start) for _ in range(rounds)]

    def exchange() -> list[Verdict]:
        together.wait(WAIT_S)
        snapshot, verdicts = start, []
        for _ in range(rounds):
            verdict, snapshot = client.exchange(UP, snapshot)
            np.testing.assert_array_equal(snapshot.params["w"], BASE + snapshot.step)
            verdicts.append(verdict)
        return verdicts

    def look() -> list[Verdict]:
        together.wait(WAIT_S)
        for _ in range(rounds):
            snapshot, status = client.pull(), client.status()
            np.testing.assert_array_equal(snapshot.params["w"], BASE + snapshot.step)
            assert (status.rule, status.initialized) == ("custom", True)
        return []

    calls = [push, push, exchange, exchange, look, look, look, look]
    working = [in_thread(call) for call in calls]
    verdicts = [verdict for each in working for verdict in each.result(WAIT_S)]

    steps = sorted(verdict.step for verdict in verdicts)
    assert steps == list(range(1, 4 * rounds + 1))
    assert not any(verdict.duplicate for verdict in verdicts)
    np.testing.assert_array_equal(client.pull().params["w"], BASE + 4 * rounds)


# A socket that is somebody else's


def test_a_stranger_that_says_nothing_hears_nothing(
    initialized: Any, connect_near: ConnectNear, redirect: Redirect
) -> None:
    """The client waits for the greeting a little, and stays with gRPC."""
    address = initialized(SMALL)
    with (
        tempfile.TemporaryDirectory(prefix="other-") as home,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger,
    ):
        path = str(Path(home) / "socket")
        stranger.bind(path)
        stranger.listen()
        redirect(lambda _: path)
        client = connect_near(address)

        verdict = client.push(SMALL_UP, client.pull())

        client.close()
        stranger.settimeout(WAIT_S)
        with closing(stranger.accept()[0]) as connection:
            connection.settimeout(WAIT_S)
            assert connection.recv(2**16) == b""
    assert verdict == Verdict(applied=True, staleness=0, step=1)


@pytest.mark.parametrize(
    "greeting",
    [
        bytes([16, *[0] * 23]) + b"0123456789abcdef",
        bytes(24),
        bytes([8, *[0] * 23]) + b"half of",
        b"SSH-2.0-OpenSSH_9.9\r\n" + bytes(100),
        b"",
    ],
    ids=["another server", "empty", "cut off", "another protocol", "hangs up"],
)
def test_a_stranger_that_says_something_else_hears_nothing(
    initialized: Any,
    connect_near: ConnectNear,
    redirect: Redirect,
    in_thread: Any,
    greeting: bytes,
) -> None:
    """Only the incarnation that the server named is spoken to."""
    address = initialized(SMALL)

    def greet(stranger: socket.socket) -> bytes:
        stranger.settimeout(WAIT_S)
        with closing(stranger.accept()[0]) as connection:
            connection.settimeout(WAIT_S)
            connection.sendall(greeting)
            connection.shutdown(socket.SHUT_WR)
            heard = b""
            with suppress(ConnectionError):
                while data := connection.recv(2**16):
                    heard += data
            return heard

    with (
        tempfile.TemporaryDirectory(prefix="other-") as home,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger,
    ):
        path = str(Path(home) / "socket")
        stranger.bind(path)
        stranger.listen()
        redirect(lambda _: path)
        greeting_them = in_thread(greet, stranger)
        client = connect_near(address)

        verdict = client.push(SMALL_UP, client.pull())

        client.close()
        assert greeting_them.result(WAIT_S) == b""
    assert verdict == Verdict(applied=True, staleness=0, step=1)


@pytest.mark.parametrize(
    "name", ["missing", "file", "folder", "deserted", "x" * 200], ids=lambda n: n[:8]
)
def test_a_path_without_a_listener_is_left_alone(
    initialized: Any,
    connect_near: ConnectNear,
    redirect: Redirect,
    name: str,
) -> None:
    """A file, a folder, nothing, a socket whose owner is gone, too long a name."""
    address = initialized(SMALL)
    with tempfile.TemporaryDirectory(prefix="other-") as home:
        (Path(home) / "file").write_text("as it was")
        (Path(home) / "folder").mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deserted:
            deserted.bind(str(Path(home) / "deserted"))
        redirect(lambda _: str(Path(home) / name))
        client = connect_near(address)

        verdict = client.push(SMALL_UP, client.pull())

        assert (Path(home) / "file").read_text() == "as it was"
        assert len(list(Path(home).iterdir())) == 3
    assert verdict == Verdict(applied=True, staleness=0, step=1)


@pytest.mark.parametrize("kind", [Kind.PUSH, Kind.EXCHANGE], ids=["push", "exchange"])
def test_after_an_interruption_no_call_gets_the_answer_of_another(
    initialized: Any, connect_near: ConnectNear, unix_relay: UnixRelay, kind: Kind
) -> None:
    """Ctrl-C while the client waits: the answer still comes, and is nobody's."""
    client = connect_near(initialized(PARAMS))
    snapshot = client.pull()
    interrupted = threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert interrupted.wait(WAIT_S)

    unix_relay.before[kind] = interrupt
    with pytest.raises(KeyboardInterrupt):
        getattr(client, kind.name.lower())(UP, snapshot)
    interrupted.set()

    assert client.status().rule == "custom"
    before = client.pull()
    verdict, new = client.exchange(UP, before)
    assert (verdict.applied, verdict.duplicate) == (True, False)
    # The interrupted push may come through at any time, or not at all.
    assert verdict.step > before.step
    np.testing.assert_array_equal(new.params["w"], BASE + new.step)
