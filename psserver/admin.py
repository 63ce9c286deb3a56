"""What an operator asks a running server: its status and health, to save, to stop."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pswire import methods
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.body import MAX_MESSAGE_NBYTES
from pswire.errors import ParameterServerError, from_status
from pswire.inspection import Inspection
from pswire.status import Limits, Status

_TIMEOUT_S = 5.0
_SAVE_TIMEOUT_S = 600.0  # Gigabytes, on a slow disk.
_MOVE_TIMEOUT_S = 600.0  # Likewise, on a slow link.
_EVERY_S = 1.0
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    # Who follows a server wants to know soon that it is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def status(address: str) -> Status:
    """Return a server's counters.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _channel(address) as channel:
        return _status(channel, address)


def follow(address: str) -> Iterator[Status | ParameterServerError]:
    """Ask a server for its counters once a second, over one channel.

    Yields:
        Its counters or, as often as it does not answer, the error that says so.

    Raises:
        ParameterServerError: It has not answered the first time.
    """
    with _channel(address) as channel:
        found: Status | ParameterServerError = _status(channel, address)
        while True:
            yield found
            time.sleep(_EVERY_S)
            try:
                found = _status(channel, address)
            except ParameterServerError as error:
                found = error


def is_healthy(address: str) -> bool:
    """Say whether a server is serving.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _channel(address) as channel, from_status(address):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        return reply.status == health_pb2.HealthCheckResponse.SERVING


def stop(address: str) -> None:
    """Ask a server to stop; it does so with grace, after this returns.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _channel(address) as channel, from_status(address):
        rpc.AdminStub(channel).Stop(pb.StopRequest(), timeout=_TIMEOUT_S)


def change(address: str, settings: Mapping[str, str]) -> Limits:
    """Change settings of a running server: all that are named or, on any error, none.

    Args:
        address: The server's.
        settings: By their names, as text: {"max_staleness": "4"}, say.

    Returns:
        What it accepts from now on.

    Raises:
        ParameterServerError: The server cannot be reached, or a setting is not what
            it has to be.
    """
    with _channel(address) as channel, from_status(address):
        request = pb.SetRequest(settings=settings)
        reply = rpc.AdminStub(channel).Set(request, timeout=_TIMEOUT_S)
        return Limits.from_proto(reply.limits)


def save_checkpoint(address: str) -> tuple[str, int]:
    """Have a server save a checkpoint now.

    Returns:
        Where it lies on the server's machine, and its step.

    Raises:
        ParameterServerError: The server cannot be reached, or cannot save one.
    """
    with _channel(address) as channel, from_status(address):
        request = pb.SaveCheckpointRequest()
        reply = rpc.AdminStub(channel).SaveCheckpoint(request, timeout=_SAVE_TIMEOUT_S)
        return reply.path, reply.step


def inspect(address: str, names: Sequence[str] = ()) -> Inspection:
    """Return what a server keeps of its model, and some of it.

    Args:
        address: HOST:PORT.
        names: Of the arrays that are wanted.

    Raises:
        ParameterServerError: The server cannot be reached, or has no such array.
    """
    method = methods.INSPECT
    with _channel(address) as channel, from_status(address):
        call = channel.unary_stream(
            method.path, method.request.encode, method.reply.decode
        )
        pieces = call(pb.InspectRequest(names=names), timeout=_MOVE_TIMEOUT_S)
        return Inspection.read(pieces, names)


def _status(channel: grpc.Channel, address: str) -> Status:
    with from_status(address):
        stub = rpc.ParameterServerStub(channel)
        return Status.from_proto(stub.Status(pb.StatusRequest(), timeout=_TIMEOUT_S))


@contextmanager
def _channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        yield channel
