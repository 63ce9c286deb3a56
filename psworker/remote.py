"""The calls over gRPC, which works everywhere."""

from collections.abc import Iterator
from typing import Any, TypeVar

from pswire import body, methods
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import MAX_UNARY_NBYTES, Arrays
from pswire.channel import open_channel
from pswire.credentials import Credentials
from pswire.errors import InternalError, from_status
from pswire.layout import Layout
from pswire.methods import InspectPiece, Method, PullPiece
from pswire.pieces import Header, Piece

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Remote:
    """A `Transport` over one gRPC channel."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        """Prepare to call; nothing is sent yet.

        Args:
            address: HOST:PORT.
            credentials: What to show it, and by what to know it.

        Raises:
            ValueError: A file of the credentials cannot be read any more.
        """
        self._address = address
        self._metadata = credentials.metadata
        self._channel = open_channel(address, credentials)
        self._calls = {m: self._prepare(m) for m in methods.METHODS}

    def close(self) -> None:
        self._channel.close()

    def join(self, request: pb.JoinRequest, timeout: float) -> pb.JoinReply:
        return self._call(methods.JOIN, request, timeout)

    def initialize(
        self,
        header: pb.InitializeHeader,
        layout: Layout,
        arrays: Arrays,
        timeout: float,
    ) -> pb.InitializeReply:
        if layout.nbytes > MAX_UNARY_NBYTES:
            pieces = _pieces(header, layout, arrays)
            return self._call(methods.INITIALIZE_STREAM, pieces, timeout)
        piece = Piece(header, 0, body.join(layout, arrays))
        return self._call(methods.INITIALIZE, piece, timeout)

    def pull(
        self, request: pb.PullRequest, nbytes: int, timeout: float
    ) -> Iterator[PullPiece]:
        if nbytes <= MAX_UNARY_NBYTES:
            return iter((self._call(methods.PULL, request, timeout),))
        return self._stream(methods.PULL_STREAM, request, timeout)

    def push(
        self, header: pb.PushHeader, layout: Layout, arrays: Arrays, timeout: float
    ) -> pb.PushReply:
        if layout.nbytes > MAX_UNARY_NBYTES:
            pieces = _pieces(header, layout, arrays)
            return self._call(methods.PUSH_STREAM, pieces, timeout)
        piece = Piece(header, 0, body.join(layout, arrays))
        return self._call(methods.PUSH, piece, timeout)

    def exchange(
        self,
        header: pb.PushHeader,
        layout: Layout,
        arrays: Arrays,
        nbytes: int,
        timeout: float,
    ) -> tuple[pb.PushReply, Iterator[PullPiece]]:
        if max(layout.nbytes, nbytes) <= MAX_UNARY_NBYTES:
            piece = Piece(header, 0, body.join(layout, arrays))
            replies = iter((self._call(methods.EXCHANGE, piece, timeout),))
        else:
            pieces = _pieces(header, layout, arrays)
            replies = self._stream(methods.EXCHANGE_STREAM, pieces, timeout)
        first = next(replies, None)
        if first is None or first.push is None:
            raise InternalError(f"{self._address}: expected a verdict, got none")

        def pulled() -> Iterator[PullPiece]:
            yield first.pull
            for reply in replies:
                yield reply.pull

        return first.push, pulled()

    def lease_shard(
        self, request: pb.LeaseShardRequest, timeout: float
    ) -> pb.LeaseShardReply:
        return self._call(methods.LEASE_SHARD, request, timeout)

    def leave(self, request: pb.LeaveRequest, timeout: float) -> pb.LeaveReply:
        return self._call(methods.LEAVE, request, timeout)

    def inspect(
        self, request: pb.InspectRequest, timeout: float
    ) -> Iterator[InspectPiece]:
        return self._stream(methods.INSPECT, request, timeout)

    def status(self, timeout: float) -> pb.StatusReply:
        return self._call(methods.STATUS, pb.StatusRequest(), timeout)

    def _prepare(self, method: Method[Any, Any]) -> Any:
        make = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }[method.streams_requests, method.streams_replies]
        return make(method.path, method.request.encode, method.reply.decode)

    def _call(
        self,
        method: Method[Request, Reply],
        request: Request | Iterator[Request],
        timeout: float,
    ) -> Reply:
        with from_status(self._address):
            return self._calls[method](
                request, timeout=timeout, metadata=self._metadata
            )

    def _stream(
        self,
        method: Method[Request, Reply],
        request: Request | Iterator[Request],
        timeout: float,
    ) -> Iterator[Reply]:
        with from_status(self._address):
            yield from self._calls[method](
                request, timeout=timeout, metadata=self._metadata
            )


def _pieces(header: Header, layout: Layout, arrays: Arrays) -> Iterator[Piece[Header]]:
    yield Piece(header)
    for offset, data in body.cut(layout, arrays):
        yield Piece(None, offset, data)
