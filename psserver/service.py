"""The calls over gRPC."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from psserver.calls import Calls, Pulled, PulledSnapshot
from psserver.metrics.meter import CallMeter, Meter
from pswire import body, methods
from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import CallCancelledError, TooLargeError, to_status
from pswire.methods import InitializePiece, InspectPiece, Method, PullPiece, PushPiece
from pswire.pieces import Exchanged, Header, Piece
from pswire.values import PushHeader

Message = TypeVar("Message")
Reply = TypeVar("Reply")


class ParameterServer:
    """Answers RPCs; a unary call is treated as a stream of one message."""

    def __init__(self, calls: Calls, meter: Meter | None = None) -> None:
        """Prepare to answer.

        Args:
            calls: What every call means.
            meter: Measures them; None: nobody asks.
        """
        self._calls = calls
        self._meter = meter

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what to add to a gRPC server."""
        return grpc.method_handlers_generic_handler(
            methods.SERVICE, {m.name: self._handler(m) for m in methods.METHODS}
        )

    def Join(
        self, request: pb.JoinRequest, context: grpc.ServicerContext
    ) -> pb.JoinReply:
        with to_status(context):
            return self._calls.join(request)

    def Initialize(
        self, request: InitializePiece, context: grpc.ServicerContext
    ) -> pb.InitializeReply:
        return self.InitializeStream(iter((request,)), context)

    def InitializeStream(
        self, requests: Iterator[InitializePiece], context: grpc.ServicerContext
    ) -> pb.InitializeReply:
        with to_status(context):
            return self._calls.initialize(_arriving(requests, context))

    def Pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> PullPiece:
        with to_status(context):
            return _whole(self._calls.pull(request))

    def PullStream(
        self, request: pb.PullRequest, context: grpc.ServicerContext
    ) -> Iterator[PullPiece]:
        with to_status(context):
            yield from _pieces(self._calls.pull(request))

    def Push(self, request: PushPiece, context: grpc.ServicerContext) -> pb.PushReply:
        return self.PushStream(iter((request,)), context)

    def PushStream(
        self, requests: Iterator[PushPiece], context: grpc.ServicerContext
    ) -> pb.PushReply:
        with to_status(context):
            pieces = _arriving(requests, context)
            return self._calls.push(pieces, context.is_active)[1].to_proto()

    def Exchange(self, request: PushPiece, context: grpc.ServicerContext) -> Exchanged:
        with to_status(context):
            header, verdict = self._calls.push(
                iter((request,)), context.is_active, self._require_room
            )
            pull = _whole(self._calls.pull_after(header))
            return Exchanged(verdict.to_proto(), pull)

    def ExchangeStream(
        self, requests: Iterator[PushPiece], context: grpc.ServicerContext
    ) -> Iterator[Exchanged]:
        with to_status(context):
            header, verdict = self._calls.push(
                _arriving(requests, context), context.is_active
            )
            pieces = _pieces(self._calls.pull_after(header))
            yield Exchanged(verdict.to_proto(), next(pieces))
            for piece in pieces:
                yield Exchanged(None, piece)

    def LeaseShard(
        self, request: pb.LeaseShardRequest, context: grpc.ServicerContext
    ) -> pb.LeaseShardReply:
        with to_status(context):
            return self._calls.lease_shard(request)

    def Leave(
        self, request: pb.LeaveRequest, context: grpc.ServicerContext
    ) -> pb.LeaveReply:
        with to_status(context):
            return self._calls.leave(request)

    def Inspect(
        self, request: pb.InspectRequest, context: grpc.ServicerContext
    ) -> Iterator[InspectPiece]:
        with to_status(context):
            yield from _pieces(self._calls.inspect(request))

    def Status(
        self, request: pb.StatusRequest, context: grpc.ServicerContext
    ) -> pb.StatusReply:
        with to_status(context):
            return self._calls.status(request)

    def _handler(self, method: Method[Any, Any]) -> Any:
        make: Callable[..., Any] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.streams_requests, method.streams_replies]
        answer = getattr(self, method.name)
        decode, encode = method.request.decode, method.reply.encode
        if self._meter:
            meter = CallMeter(self._meter, "grpc", method.name)
            metered = _metered_stream if method.streams_replies else _metered
            answer = metered(answer, meter)
            decode, encode = meter.receiving(decode), meter.sending(encode)
        return make(answer, decode, encode)

    def _require_room(self, header: PushHeader) -> None:
        _require_unary(
            self._calls.snapshot_nbytes(header.session, header.snapshot_encoding)
        )


def _metered(answer: Callable[..., Reply], meter: CallMeter) -> Callable[..., Reply]:
    def metered(request: Any, context: grpc.ServicerContext) -> Reply:
        began = meter.now()
        try:
            return answer(request, context)
        finally:
            meter.answered(_code(context), began)

    return metered


def _metered_stream(
    answer: Callable[..., Iterator[Reply]], meter: CallMeter
) -> Callable[..., Iterator[Reply]]:
    def metered(request: Any, context: grpc.ServicerContext) -> Iterator[Reply]:
        began = meter.now()
        try:
            yield from answer(request, context)
        finally:
            meter.answered(_code(context), began)

    return metered


def _code(context: Any) -> str:
    code = context.code()
    if code is None:  # Nothing was said by us, but the caller may have gone.
        active = context.is_active()
        code = grpc.StatusCode.OK if active else grpc.StatusCode.CANCELLED
    return str(code.name)


def _arriving(
    requests: Iterator[Message], context: grpc.ServicerContext
) -> Iterator[Message]:
    gone = CallCancelledError("stream: the caller went away")
    try:
        yield from requests
    except grpc.RpcError as error:
        raise gone from error
    # Of a call that was cancelled between two messages, gRPC says that it ended.
    if not context.is_active():
        raise gone


def _require_unary(nbytes: int) -> None:
    if nbytes > body.MAX_UNARY_NBYTES:
        raise TooLargeError(
            f"variables: expected at most {body.MAX_UNARY_NBYTES} bytes in one "
            f"message, got {nbytes}; the Stream calls carry them"
        )


def _whole(pulled: PulledSnapshot) -> PullPiece:
    _require_unary(pulled.layout.nbytes)
    if pulled.variables is None:
        return Piece(pulled.header)
    return Piece(pulled.header, 0, body.join(pulled.layout, pulled.variables))


def _pieces(pulled: Pulled[Header]) -> Iterator[Piece[Header]]:
    yield Piece(pulled.header)
    if pulled.variables is not None:
        for offset, data in body.cut(pulled.layout, pulled.variables):
            yield Piece(None, offset, data)
