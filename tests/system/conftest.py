"""What the tests of the whole system share: threads, a slow rule, raw pushes."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import psserver
import psworker
from kit.virtualdisk import VirtualDisk
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc

ConnectNear = Callable[..., psworker.Client]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Kept = Callable[..., dict[str, Any]]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
StartServer = Callable[..., psserver.Server]
Succeed = Callable[..., psserver.Server]
UseDisk = Callable[[VirtualDisk], None]
MakePush = Callable[..., pb.PushRequest]
JoinRaw = Callable[..., tuple[rpc.ParameterServerStub, MakePush]]
Hold = Callable[[], AbstractContextManager[threading.Event]]
Watch = Callable[[str], Iterator[int]]
SendHalf = Callable[
    [rpc.ParameterServerStub, pb.PushRequest], tuple[Any, Callable[[], None]]
]

_TIMEOUT_S = 30.0
_TURN_S = 1e-6


class _Gate:
    """Lets updates through while it is open, and notes that one has come."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Event()

    def rule(self) -> optax.GradientTransformation:
        def pass_gate(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
            one = jax.pure_callback(self._wait, jax.ShapeDtypeStruct((), jnp.float32))
            return jax.tree.map(lambda update: update * one, updates)

        return optax.chain(optax.sgd(1.0), optax.stateless(pass_gate))

    @contextmanager
    def hold(self) -> Iterator[threading.Event]:
        self._reached.clear()
        self._open.clear()
        try:
            yield self._reached
        finally:
            self._open.set()

    def _wait(self) -> np.float32:
        self._reached.set()
        if not self._open.wait(_TIMEOUT_S):
            raise TimeoutError("the gate was never opened")
        return np.float32(1.0)


@pytest.fixture(scope="module", autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    """Let Python interrupt a thread in the midst of far more of what it does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)

    yield

    sys.setswitchinterval(interval)


@pytest.fixture
def in_parallel() -> InParallel:
    """Run functions at once, each in its own thread, and return their results."""

    def run(calls: Sequence[Callable[[], Any]]) -> list[Any]:
        start = threading.Barrier(len(calls))

        def released(call: Callable[[], Any]) -> Any:
            start.wait(_TIMEOUT_S)
            return call()

        with ThreadPoolExecutor(len(calls), "test") as pool:
            results = [pool.submit(released, call) for call in calls]
            # In order of completion: the first failure is the cause of the others.
            for result in as_completed(results):
                result.result()
        return [result.result() for result in results]

    return run


@pytest.fixture
def use_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UseDisk:
    """Give the servers that start from now on a disk, on which `tmp_path` lasts."""

    def use(disk: VirtualDisk) -> None:
        disk.make_folder(tmp_path)
        for folder in tmp_path.parents:
            disk.sync_folder(folder)
        monkeypatch.setattr("psserver.durability.disk.RealDisk", lambda: disk)

    return use


@pytest.fixture
def mark() -> Mark:
    """Make the gradient with which push `number` adds 1 to its own element.

    Under SGD with a learning rate of 1 from zeros, the variable then counts how often
    every push was applied.
    """

    def gradient(number: int, size: int) -> npt.NDArray[np.float32]:
        marked = np.zeros(size, np.float32)
        marked[number] = -1.0
        return marked

    return gradient


@pytest.fixture
def gate() -> _Gate:
    """Keep the gate that `slow_rule` passes and `hold` closes."""
    return _Gate()


@pytest.fixture
def slow_rule(gate: _Gate) -> optax.GradientTransformation:
    """Make SGD with a learning rate of 1 that waits while `hold` is entered."""
    return gate.rule()


@pytest.fixture
def hold(gate: _Gate) -> Hold:
    """Keep updates from ending for a while; yields the event that one has begun."""
    return gate.hold


@pytest.fixture
def join_raw() -> Iterator[JoinRaw]:
    """Join as a worker without a client: every request is the test's own.

    Yields a function of an address, a session and a worker's name, which returns the
    stub and a maker of push requests for that session, of the one variable `A`.
    """
    with ExitStack() as stack:

        def join(
            address: str, session: str, worker: str | None = None
        ) -> tuple[rpc.ParameterServerStub, MakePush]:
            stub = rpc.ParameterServerStub(
                stack.enter_context(grpc.insecure_channel(address))
            )
            request = pb.JoinRequest(worker=worker or session, session=session)
            generation = stub.Join(request, timeout=_TIMEOUT_S).generation

            def push(
                seq: int, gradient: npt.NDArray[np.float32], *, step_read: int
            ) -> pb.PushRequest:
                header = pb.PushHeader(
                    session=session,
                    seq=seq,
                    generation=generation,
                    step_read=step_read,
                    nbytes=gradient.nbytes,
                )
                return pb.PushRequest(header=header, data=gradient.tobytes())

            return stub, push

        yield join


@pytest.fixture
def send_half() -> Iterator[SendHalf]:
    """Send a push's header and half of its body, and keep the rest back.

    Yields a function of a stub and a request, which returns the call and a function
    that sends the rest.
    """
    rests: list[threading.Event] = []

    def send(
        stub: rpc.ParameterServerStub, request: pb.PushRequest
    ) -> tuple[Any, Callable[[], None]]:
        half, rest = threading.Event(), threading.Event()
        rests.append(rest)
        middle = len(request.data) // 2

        def pieces() -> Iterator[pb.PushRequest]:
            yield pb.PushRequest(header=request.header)
            yield pb.PushRequest(data=request.data[:middle])
            half.set()
            rest.wait(_TIMEOUT_S)
            yield pb.PushRequest(offset=middle, data=request.data[middle:])

        call = stub.PushStream.future(pieces(), timeout=_TIMEOUT_S)
        assert half.wait(_TIMEOUT_S)
        # Answered on the same connection: the server has read what came before.
        stub.Pull(pb.PullRequest(), timeout=_TIMEOUT_S)
        return call, rest.set

    yield send
    for rest in rests:
        rest.set()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Watch a server's health: yields what it says, until it says no more."""
    with ExitStack() as stack:

        def begin(address: str) -> Iterator[int]:
            channel = stack.enter_context(grpc.insecure_channel(address))
            stub: Any = health_pb2_grpc.HealthStub(channel)
            replies = stub.Watch(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            return (reply.status for reply in replies)

        yield begin


@pytest.fixture
def connect_near() -> Iterator[ConnectNear]:
    """Connect clients that close with the test; they go past gRPC if they can."""
    with ExitStack() as stack:
        yield lambda address, **settings: stack.enter_context(
            psworker.connect(address, **settings)
        )


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """Make the settings of servers of one data directory, one after another.

    They save a checkpoint when they are told to, and at their end.
    """

    def make(durability: str, **settings: Any) -> dict[str, Any]:
        place = {"data_dir": tmp_path / "data", "checkpoint_every": 10**9}
        where = {} if durability == "none" else place
        return {"durability": durability, **where, **settings}

    return make


@pytest.fixture
def succeed(start_server: StartServer) -> Succeed:
    """End a server that is at rest, and start another in its place.

    Yields a function of the server, of how it ends, and of the settings of the next
    one. It is "stopped", or "killed": then all that it does to its data directory in
    the end is undone.
    """

    def replace(server: psserver.Server, end: str, **settings: Any) -> psserver.Server:
        folder = settings.get("data_dir")
        if end == "killed" and folder:
            left = folder.with_name("left")
            shutil.copytree(folder, left)
            server.stop()
            shutil.rmtree(folder)
            left.rename(folder)
        server.stop()
        return start_server(port=int(server.address.rpartition(":")[2]), **settings)

    return replace


@pytest.fixture
def newest_arrays() -> Callable[[Path], bytes]:
    """Read the variables and slots of a data directory's newest checkpoint."""

    def read(data_dir: Path) -> bytes:
        newest = max((data_dir / "checkpoints").iterdir())
        return (newest / "arrays.safetensors").read_bytes()

    return read
