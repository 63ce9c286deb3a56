"""The RPCs: decode, ask the store, encode."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

import grpc
import numpy.typing as npt

from psserver.malformed import require_message
from psserver.store import Store
from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import (
    CallCancelledError,
    InvalidRequestError,
    ParameterServerError,
    TooLargeError,
    to_status,
)
from pswire.layout import Layout
from pswire.values import PushHeader, Snapshot, Verdict

Message = TypeVar("Message")
Headed = TypeVar("Headed", pb.InitializeRequest, pb.PushRequest)


class _Piece(Protocol):
    @property
    def offset(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...


class ParameterServer(rpc.ParameterServerServicer):
    """Answers RPCs from a `Store`, which decides what every call means.

    A unary call is treated as a stream of one message.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock

    def Join(
        self, request: pb.JoinRequest, context: grpc.ServicerContext
    ) -> pb.JoinReply:
        with to_status(context):
            joined = self._store.join(request.worker, request.session, self._clock())
            return pb.JoinReply(
                generation=joined.generation,
                incarnation=joined.incarnation,
                step=joined.step,
                layout=joined.layout.to_proto() if joined.layout else None,
                limits=joined.limits.to_proto(),
            )

    def Initialize(
        self, request: pb.InitializeRequest, context: grpc.ServicerContext
    ) -> pb.InitializeReply:
        return self.InitializeStream(iter((request,)), context)

    def InitializeStream(
        self,
        requests: Iterator[pb.InitializeRequest],
        context: grpc.ServicerContext,
    ) -> pb.InitializeReply:
        with to_status(context):
            messages = _arriving(requests, context)
            first = _first(messages)
            initialized = self._store.initialize(
                first.header.session,
                Layout.from_proto(first.header.layout),
                lambda layout: _receive(layout, first, messages),
                self._clock(),
            )
            return pb.InitializeReply(
                initialized=initialized,
                generation=self._store.generation,
                step=self._store.pull("", self._clock())[1].step,
            )

    def Pull(
        self, request: pb.PullRequest, context: grpc.ServicerContext
    ) -> pb.PullReply:
        with to_status(context):
            self._require_unary(request.session)
            return self._whole(request)

    def PullStream(
        self, request: pb.PullRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.PullReply]:
        with to_status(context):
            yield from self._pieces(request)

    def Push(
        self, request: pb.PushRequest, context: grpc.ServicerContext
    ) -> pb.PushReply:
        return self.PushStream(iter((request,)), context)

    def PushStream(
        self, requests: Iterator[pb.PushRequest], context: grpc.ServicerContext
    ) -> pb.PushReply:
        with to_status(context):
            _, verdict = self._push(_arriving(requests, context), context)
            return verdict.to_proto()

    def Exchange(
        self, request: pb.ExchangeRequest, context: grpc.ServicerContext
    ) -> pb.ExchangeReply:
        with to_status(context):
            # Asked first: once the push is applied it is too late to refuse.
            header, verdict = self._push(
                _pushes(iter((request,))), context, self._require_unary
            )
            pull = self._whole(_pull_after(header))
            return pb.ExchangeReply(push=verdict.to_proto(), pull=pull)

    def ExchangeStream(
        self, requests: Iterator[pb.ExchangeRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExchangeReply]:
        with to_status(context):
            header, verdict = self._push(_pushes(_arriving(requests, context)), context)
            pieces = self._pieces(_pull_after(header))
            yield pb.ExchangeReply(push=verdict.to_proto(), pull=next(pieces))
            for piece in pieces:
                yield pb.ExchangeReply(pull=piece)

    def Status(
        self, request: pb.StatusRequest, context: grpc.ServicerContext
    ) -> pb.StatusReply:
        with to_status(context):
            require_message(request)
            return self._store.status(self._clock()).to_proto()

    def _push(
        self,
        messages: Iterator[pb.PushRequest],
        context: grpc.ServicerContext,
        require: Callable[[str], None] = lambda session: None,
    ) -> tuple[PushHeader, Verdict]:
        session = ""
        try:
            first = _first(messages)
            session = first.header.session
            header = PushHeader.from_proto(first.header)
            require(session)
        except ParameterServerError as error:
            self._store.reject(session, error, self._clock())
            raise
        verdict = self._store.push(
            header,
            lambda layout: _receive(layout, first, messages),
            self._clock(),
            context.is_active,
            self._clock,
        )
        return header, verdict

    def _whole(self, request: pb.PullRequest) -> pb.PullReply:
        layout, snapshot = self._store.pull(request.session, self._clock())
        header = self._header(request, layout, snapshot)
        data = b"" if header.not_modified else body.join(layout, snapshot.params)
        return pb.PullReply(header=header, data=data)

    def _pieces(self, request: pb.PullRequest) -> Iterator[pb.PullReply]:
        layout, snapshot = self._store.pull(request.session, self._clock())
        header = self._header(request, layout, snapshot)
        yield pb.PullReply(header=header)
        if not header.not_modified:
            for offset, data in body.cut(layout, snapshot.params):
                yield pb.PullReply(offset=offset, data=data)

    def _header(
        self, request: pb.PullRequest, layout: Layout, snapshot: Snapshot[Any]
    ) -> pb.SnapshotHeader:
        same = request.generation == snapshot.generation
        return pb.SnapshotHeader(
            generation=snapshot.generation,
            incarnation=self._store.incarnation,
            step=snapshot.step,
            not_modified=same and request.step == snapshot.step,
            layout=None if same else layout.to_proto(),
        )

    def _require_unary(self, session: str) -> None:
        nbytes = self._store.pull(session, self._clock())[0].nbytes
        if nbytes > body.MAX_UNARY_NBYTES:
            raise TooLargeError(
                f"variables: expected at most {body.MAX_UNARY_NBYTES} bytes in one "
                f"message, got {nbytes}; the Stream calls carry them"
            )


def _pull_after(header: PushHeader) -> pb.PullRequest:
    return pb.PullRequest(
        session=header.session, generation=header.generation, step=header.step_read
    )


def _pushes(requests: Iterator[pb.ExchangeRequest]) -> Iterator[pb.PushRequest]:
    return (request.push for request in requests)


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


def _first(messages: Iterator[Headed]) -> Headed:
    for message in messages:
        if message.HasField("header"):
            return message
        raise InvalidRequestError("header: expected in the first message, got none")
    raise InvalidRequestError("stream: expected a message with a header, got none")


def _receive(
    layout: Layout, first: _Piece, rest: Iterable[_Piece]
) -> dict[str, npt.NDArray[Any]]:
    assembly = body.Assembly(layout)
    assembly.add(first.offset, first.data)
    for piece in rest:
        if piece.HasField("header"):
            raise InvalidRequestError(
                "header: expected in the first message alone, got another one"
            )
        assembly.add(piece.offset, piece.data)
    return assembly.finish()
