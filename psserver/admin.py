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
from pswire.channel import open_channel
from pswire.credentials import ANONYMOUS, Credentials
from pswire.errors import (
    ParameterServerError,
    ServerUnavailableError,
    TlsError,
    from_status,
)
from pswire.inspection import Inspection
from pswire.status import Limits, Status
from pswire.tlsprobe import complaint

_TIMEOUT_S = 5.0
_SAVE_TIMEOUT_S = 600.0  # Gigabytes, on a slow disk.
_MOVE_TIMEOUT_S = 600.0  # Likewise, on a slow link.
_EVERY_S = 1.0

Metadata = tuple[tuple[str, str], ...]


def status(address: str, credentials: Credentials = ANONYMOUS) -> Status:
    """Return a server's counters.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _calling(address, credentials) as (channel, metadata):
        return _status(channel, metadata, address)


def follow(
    address: str, credentials: Credentials = ANONYMOUS
) -> Iterator[Status | ParameterServerError]:
    """Ask a server for its counters once a second, over one channel.

    Yields:
        Its counters or, as often as it does not answer, the error that says so.

    Raises:
        ParameterServerError: It has not answered the first time.
    """
    with _calling(address, credentials) as (channel, metadata):
        found: Status | ParameterServerError = _status(channel, metadata, address)
        while True:
            yield found
            time.sleep(_EVERY_S)
            try:
                found = _status(channel, metadata, address)
            except ParameterServerError as error:
                found = error


def is_healthy(address: str, credentials: Credentials = ANONYMOUS) -> bool:
    """Say whether a server is serving.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _calling(address, credentials) as (channel, metadata):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(
            health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S, metadata=metadata
        )
        return reply.status == health_pb2.HealthCheckResponse.SERVING


def stop(address: str, credentials: Credentials = ANONYMOUS) -> None:
    """Ask a server to stop; it does so with grace, after this returns.

    Raises:
        ParameterServerError: The server cannot be reached, or does not answer.
    """
    with _calling(address, credentials) as (channel, metadata):
        rpc.AdminStub(channel).Stop(
            pb.StopRequest(), timeout=_TIMEOUT_S, metadata=metadata
        )


def change(
    address: str,
    settings: Mapping[str, str],
    credentials: Credentials = ANONYMOUS,
) -> Limits:
    """Change settings of a running server: all that are named or, on any error, none.

    Args:
        address: The server's.
        settings: By their names, as text: {"max_staleness": "4"}, say.
        credentials: What to show it, and by what to know it.

    Returns:
        What it accepts from now on.

    Raises:
        ParameterServerError: The server cannot be reached, or a setting is not what
            it has to be.
    """
    with _calling(address, credentials) as (channel, metadata):
        request = pb.SetRequest(settings=settings)
        reply = rpc.AdminStub(channel).Set(
            request, timeout=_TIMEOUT_S, metadata=metadata
        )
        return Limits.from_proto(reply.limits)


def save_checkpoint(
    address: str, credentials: Credentials = ANONYMOUS
) -> tuple[str, int]:
    """Have a server save a checkpoint now.

    Returns:
        Where it lies on the server's machine, and its step.

    Raises:
        ParameterServerError: The server cannot be reached, or cannot save one.
    """
    with _calling(address, credentials) as (channel, metadata):
        request = pb.SaveCheckpointRequest()
        reply = rpc.AdminStub(channel).SaveCheckpoint(
            request, timeout=_SAVE_TIMEOUT_S, metadata=metadata
        )
        return reply.path, reply.step


def inspect(
    address: str,
    names: Sequence[str] = (),
    credentials: Credentials = ANONYMOUS,
) -> Inspection:
    """Return what a server keeps of its model, and some of it.

    Args:
        address: HOST:PORT.
        names: Of the arrays that are wanted.
        credentials: What to show it, and by what to know it.

    Raises:
        ParameterServerError: The server cannot be reached, or has no such array.
    """
    method = methods.INSPECT
    with _calling(address, credentials) as (channel, metadata):
        call = channel.unary_stream(
            method.path, method.request.encode, method.reply.decode
        )
        pieces = call(
            pb.InspectRequest(names=names), timeout=_MOVE_TIMEOUT_S, metadata=metadata
        )
        return Inspection.read(pieces, names)


def _status(channel: grpc.Channel, metadata: Metadata, address: str) -> Status:
    with from_status(address):
        stub = rpc.ParameterServerStub(channel)
        request = pb.StatusRequest()
        reply = stub.Status(request, timeout=_TIMEOUT_S, metadata=metadata)
        return Status.from_proto(reply)


@contextmanager
def _calling(
    address: str, credentials: Credentials
) -> Iterator[tuple[grpc.Channel, Metadata]]:
    with open_channel(address, credentials) as channel:
        try:
            with from_status(address):
                yield channel, credentials.metadata
        except ServerUnavailableError as error:
            said = complaint(address, credentials)
            if said:
                raise TlsError(said) from error
            raise
