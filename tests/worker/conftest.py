"""What the worker's tests share: a relay that shows, and spoils, what is sent."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import grpc
import numpy as np
import pytest

from pswire import trees
from pswire.body import Arrays, Body
from pswire.encoding import PLAIN
from pswire.layout import Layout
from pswire.values import PushHeader, Reason, Snapshot, Verdict
from psworker.client import Client
from psworker.connection import Connection
from psworker.wire import Wire

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

Offline = Callable[..., tuple[Client, "Recorder"]]
InThread = Callable[..., "futures.Future[Any]"]
StartRelay = Callable[[str], "Relay"]


@dataclass
class Call:
    """One call as it went over the wire.

    Attributes:
        method: `Push`, say.
        requests: The messages' bytes.
        replies: The same of the answer.
        ended: Set once the answer, or the failure, is there.
    """

    method: str
    requests: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


class Relay(grpc.GenericRpcHandler):
    """A server that passes every call on to another one, message by message.

    Attributes:
        address: Where it listens.
        calls: What came, in order.
        before: {method: function}, called once each, before the next call of the
            method is passed on; `lose` in it loses the request.
        after: The same, called before the answer is passed back.
    """

    def __init__(self, target: str) -> None:
        self.calls: list[Call] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self._channel: Any = grpc.insecure_channel(target, _OPTIONS)
        self._pool = futures.ThreadPoolExecutor(16, "relay")
        self._server = grpc.server(self._pool, handlers=[self], options=_OPTIONS)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def lose(self) -> None:
        """As one of `before` or `after`: lose what would have been passed."""
        raise ConnectionError("lost on the way")

    def methods(self) -> list[str]:
        """Return the methods that were called, in order."""
        return [call.method for call in self.calls]

    def close(self) -> None:
        """Stop."""
        self._server.stop(0).wait()
        self._pool.shutdown()
        self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method

        # On the wire a unary call is a stream of one message, so this serves all.
        def pass_on(
            requests: Iterator[bytes], context: grpc.ServicerContext
        ) -> Iterator[bytes]:
            call = Call(path.rpartition("/")[2])
            self.calls.append(call)
            try:
                self.before.pop(call.method, lambda: None)()
                answer = self._channel.stream_stream(path)(
                    _kept(requests, call.requests), timeout=60
                )
                replies = list(_kept(answer, call.replies))
                self.after.pop(call.method, lambda: None)()
            except ConnectionError as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except grpc.RpcError as error:
                failure: Any = error
                context.set_trailing_metadata(failure.trailing_metadata())
                context.abort(failure.code(), failure.details())
            finally:
                call.ended.set()
            yield from replies

        return grpc.stream_stream_rpc_method_handler(pass_on)


def _kept(messages: Iterator[bytes], record: list[bytes]) -> Iterator[bytes]:
    for message in messages:
        record.append(message)
        yield message


@pytest.fixture
def start_relay() -> Iterator[StartRelay]:
    """Start relays to servers; they end with the test."""
    with ExitStack() as stack:

        def start(target: str) -> Relay:
            relay = Relay(target)
            stack.callback(relay.close)
            return relay

        yield start


@pytest.fixture
def in_thread() -> Iterator[InThread]:
    """Run functions beside the test; all of them end with it."""
    with futures.ThreadPoolExecutor(16, "beside") as pool:
        yield pool.submit


class Recorder:
    """In place of a connection: keeps what would be sent, and judges as it is told.

    Attributes:
        layout: Of the variables, which stay as they are.
        step: That snapshots have; one more for every push that is applied.
        generation: Of snapshots likewise.
        answers: Whether each push is applied, in order; then all are.
        headers: Of the pushes, in order.
        sent: The gradients, by name.
    """

    session = "session"
    pull_encoding = PLAIN

    def __init__(self, params: Any, answers: Iterable[bool]) -> None:
        arrays = trees.flatten(params)
        self.layout = Layout.of(arrays)
        self.step, self.generation = 0, "first"
        self.answers = iter(answers)
        self.headers: list[PushHeader] = []
        self.sent: list[dict[str, Any]] = []
        self._variables = Body.gather(self.layout, arrays)
        self._drops = 0

    def pull(self, known: object) -> Snapshot[Body]:
        return Snapshot(self._variables, self.step, self.generation)

    def push(self, header: PushHeader, layout: Layout, arrays: Arrays) -> Verdict:
        self.headers.append(header)
        self.sent.append({name: np.array(arrays[name]) for name in layout.places})
        staleness = self.step - header.step_read
        if next(self.answers, True):
            self.step, self._drops = self.step + 1, 0
            return Verdict(True, staleness, self.step)
        self._drops += 1
        dropped = Verdict(False, staleness, self.step, Reason.STALE)
        return replace(dropped, consecutive_drops=self._drops)


@pytest.fixture
def offline() -> Offline:
    """Make clients of no server, each with the recorder that it calls."""

    def make(
        params: Any, answers: Iterable[bool] = (), wire: Wire | None = None
    ) -> tuple[Client, Recorder]:
        recorder = Recorder(params, answers)
        return Client(cast(Connection, recorder), wire or Wire()), recorder

    return make
