"""What an operator asks a running server: status, health, stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.body import MAX_MESSAGE_NBYTES
from pswire.errors import from_status
from pswire.status import Status

_TIMEOUT_S = 5.0


def status(address: str) -> Status:
    """Return a server's counters.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _channel(address) as channel, from_status(address):
        stub = rpc.ParameterServerStub(channel)
        return Status.from_proto(stub.Status(pb.StatusRequest(), timeout=_TIMEOUT_S))


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


@contextmanager
def _channel(address: str) -> Iterator[grpc.Channel]:
    options = (("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),)
    with grpc.insecure_channel(address, options) as channel:
        yield channel
