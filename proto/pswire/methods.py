"""The service's calls, each with how its messages are written and read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pswire._generated import parameter_server_pb2 as pb
from pswire.pieces import (
    Exchanged,
    ExchangeReplyCodec,
    ExchangeRequestCodec,
    Piece,
    PieceCodec,
)

Value = TypeVar("Value")
Request = TypeVar("Request")
Reply = TypeVar("Reply")

SERVICE = pb.DESCRIPTOR.services_by_name["ParameterServer"].full_name


class Codec(Protocol[Value]):
    """Writes and reads one kind of message."""

    @property
    def encode(self) -> Callable[[Value], bytes]: ...
    @property
    def decode(self) -> Callable[[bytes], Value]: ...


@dataclass(frozen=True, slots=True)
class _Plain(Generic[Value]):
    encode: Callable[[Value], bytes]
    decode: Callable[[bytes], Value]


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    """One call of the service.

    Attributes:
        name: As in the contract.
        request: Its requests' codec.
        reply: Its replies' codec.
        streams_requests: Whether there may be several.
        streams_replies: Likewise.
    """

    name: str
    request: Codec[Request]
    reply: Codec[Reply]
    streams_requests: bool = False
    streams_replies: bool = False

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{SERVICE}/{self.name}"


def _plain(message: type[Any]) -> Any:
    return _Plain(message.SerializeToString, message.FromString)


_INITIALIZE = PieceCodec(pb.InitializeRequest, pb.InitializeHeader)
_PUSH = PieceCodec(pb.PushRequest, pb.PushHeader)
_INSPECTED = PieceCodec(pb.InspectReply, pb.InspectHeader)
_PULLED = PieceCodec(pb.PullReply, pb.SnapshotHeader)

PushPiece = Piece[pb.PushHeader]
PullPiece = Piece[pb.SnapshotHeader]
InitializePiece = Piece[pb.InitializeHeader]
InspectPiece = Piece[pb.InspectHeader]

JOIN: Method[pb.JoinRequest, pb.JoinReply] = Method(
    "Join", _plain(pb.JoinRequest), _plain(pb.JoinReply)
)
INITIALIZE: Method[InitializePiece, pb.InitializeReply] = Method(
    "Initialize", _INITIALIZE, _plain(pb.InitializeReply)
)
INITIALIZE_STREAM: Method[InitializePiece, pb.InitializeReply] = Method(
    "InitializeStream", _INITIALIZE, _plain(pb.InitializeReply), streams_requests=True
)
PULL: Method[pb.PullRequest, PullPiece] = Method(
    "Pull", _plain(pb.PullRequest), _PULLED
)
PULL_STREAM: Method[pb.PullRequest, PullPiece] = Method(
    "PullStream", _plain(pb.PullRequest), _PULLED, streams_replies=True
)
PUSH: Method[PushPiece, pb.PushReply] = Method("Push", _PUSH, _plain(pb.PushReply))
PUSH_STREAM: Method[PushPiece, pb.PushReply] = Method(
    "PushStream", _PUSH, _plain(pb.PushReply), streams_requests=True
)
EXCHANGE: Method[PushPiece, Exchanged] = Method(
    "Exchange", ExchangeRequestCodec(), ExchangeReplyCodec()
)
EXCHANGE_STREAM: Method[PushPiece, Exchanged] = Method(
    "ExchangeStream",
    ExchangeRequestCodec(),
    ExchangeReplyCodec(),
    streams_requests=True,
    streams_replies=True,
)
LEASE_SHARD: Method[pb.LeaseShardRequest, pb.LeaseShardReply] = Method(
    "LeaseShard", _plain(pb.LeaseShardRequest), _plain(pb.LeaseShardReply)
)
LEAVE: Method[pb.LeaveRequest, pb.LeaveReply] = Method(
    "Leave", _plain(pb.LeaveRequest), _plain(pb.LeaveReply)
)
INSPECT: Method[pb.InspectRequest, InspectPiece] = Method(
    "Inspect", _plain(pb.InspectRequest), _INSPECTED, streams_replies=True
)
STATUS: Method[pb.StatusRequest, pb.StatusReply] = Method(
    "Status", _plain(pb.StatusRequest), _plain(pb.StatusReply)
)
METHODS: tuple[Method[Any, Any], ...] = (
    JOIN,
    INITIALIZE,
    INITIALIZE_STREAM,
    PULL,
    PULL_STREAM,
    PUSH,
    PUSH_STREAM,
    EXCHANGE,
    EXCHANGE_STREAM,
    LEASE_SHARD,
    LEAVE,
    INSPECT,
    STATUS,
)
