"""What the frames of a worker on this host ask for, and the answers."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psserver.calls import Calls, PulledSnapshot
from psserver.malformed import marking
from psserver.metrics.meter import CallMeter
from psserver.security.access import Access
from pswire import body, methods
from pswire.errors import InvalidRequestError, code, to_bytes
from pswire.memory import copied
from pswire.methods import Method, PullPiece
from pswire.pieces import Exchanged, Piece
from pswire.samehost import MAX_INLINE_NBYTES, Frame, Kind
from pswire.sharedmemory import SharedMemory

_MAX_MEMORIES = 8  # Of one worker, at once.
CALLS: Mapping[int, Method[Any, Any]] = {
    Kind.INITIALIZE: methods.INITIALIZE,
    Kind.PULL: methods.PULL,
    Kind.PUSH: methods.PUSH,
    Kind.EXCHANGE: methods.EXCHANGE,
    Kind.STATUS: methods.STATUS,
}
"""Which call each kind of frame asks for."""

_QUICK_NBYTES = 4_000_000  # In memories, both ways.


class FrameCalls:
    """Answers one worker's frames, and keeps the memories that it has attached."""

    def __init__(
        self,
        calls: Calls,
        is_wanted: Callable[[], bool],
        meters: Mapping[int, CallMeter],
        access: Access,
    ) -> None:
        """Start without memories.

        Args:
            calls: What every call means.
            is_wanted: Whether the worker still waits.
            meters: {a `Kind` of call: what measures it}; empty: nobody asks.
            access: Who may call.
        """
        self._calls = calls
        self._is_wanted = is_wanted
        self._meters = meters
        self._access = access
        self._authorization = ""
        self._memories: dict[int, SharedMemory] = {}

    def is_quick(self, request: Frame) -> bool:
        """Say whether a request takes but little of everybody's time.

        One that does not copies much, which other threads need not wait for, or has a
        rule compiled, or waits for the disk.
        """
        if request.kind in (Kind.PUSH, Kind.EXCHANGE) and self._calls.pushes_wait:
            return False
        room = self._memories.get(request.download)
        nbytes = request.body_nbytes + (room.nbytes if room else 0)
        return request.kind != Kind.INITIALIZE and nbytes <= _QUICK_NBYTES

    def answer(self, request: Frame) -> Frame | None:
        """Do what a frame asks for; None: it wants no answer.

        Raises:
            InvalidRequestError: A memory cannot be attached.
        """
        try:
            if request.kind == Kind.ATTACH:
                self._attach(request)
                return None
        finally:
            for descriptor in request.descriptors:
                os.close(descriptor)
        if request.kind == Kind.DETACH:
            self._memories.pop(request.upload, None)
            return None
        if request.kind == Kind.AUTHORIZE:
            self._authorization = request.message.decode(errors="replace")
            return None
        meter = self._meters.get(request.kind)
        began = meter.now() if meter else 0.0
        status = "OK"
        try:
            answer = self._answer(request)
        except Exception as error:
            answer, status = Frame(Kind.ERROR, to_bytes(error)), code(error)
        if meter:
            meter.answered(status, began, _nbytes(request), _nbytes(answer))
        return answer

    def _answer(self, request: Frame) -> Frame:
        # A kind of no call is told so to whoever may call at all.
        method = CALLS.get(request.kind, methods.STATUS)
        self._access.require_call(self._authorization, method.path)
        match request.kind:
            case Kind.INITIALIZE:
                return self._initialize(request)
            case Kind.PULL:
                return self._pull(request)
            case Kind.PUSH:
                return self._push(request)
            case Kind.EXCHANGE:
                return self._exchange(request)
            case Kind.STATUS:
                return self._status(request)
        known = ", ".join(kind.name for kind in Kind)
        raise InvalidRequestError(f"kind: expected one of {known}, got {request.kind}")

    def _attach(self, request: Frame) -> None:
        try:
            if len(request.descriptors) != 1 or len(self._memories) >= _MAX_MEMORIES:
                raise ValueError("memory: expected one descriptor, and few in all")
            self._memories[request.upload] = SharedMemory(request.descriptors[0])
        except (OSError, ValueError) as error:
            raise InvalidRequestError(str(error)) from error

    def _initialize(self, request: Frame) -> Frame:
        # Copied: the variables stay, and the worker could change its memory later.
        pieces = self._pieces(methods.INITIALIZE, request, lambda: True)
        reply = self._calls.initialize(pieces)
        return Frame(Kind.ANSWER, methods.INITIALIZE.reply.encode(reply))

    def _pull(self, request: Frame) -> Frame:
        pull = marking(methods.PULL.request.decode)(request.message)
        piece, nbytes = self._whole(self._calls.pull(pull), request)
        return _with_body(methods.PULL.reply.encode(piece), request, nbytes)

    def _push(self, request: Frame) -> Frame:
        pieces = self._pushed(methods.PUSH, request)
        _, verdict = self._calls.push(pieces, self._is_wanted)
        return Frame(Kind.ANSWER, methods.PUSH.reply.encode(verdict.to_proto()))

    def _exchange(self, request: Frame) -> Frame:
        header, verdict = self._calls.push(
            self._pushed(methods.EXCHANGE, request),
            self._is_wanted,
            lambda header: self._require_room(
                self._calls.snapshot_nbytes(header.session, header.snapshot_encoding),
                request,
            ),
        )
        pull, nbytes = self._whole(self._calls.pull_after(header), request)
        exchanged = Exchanged(verdict.to_proto(), pull)
        return _with_body(methods.EXCHANGE.reply.encode(exchanged), request, nbytes)

    def _status(self, request: Frame) -> Frame:
        status = self._calls.status(
            marking(methods.STATUS.request.decode)(request.message)
        )
        return Frame(Kind.ANSWER, methods.STATUS.reply.encode(status))

    def _pushed(
        self, method: Method[Piece[Any], Any], request: Frame
    ) -> Iterator[Piece[Any]]:
        # What a log keeps has to be what was applied, and what others are waited for
        # with what was sent, whatever the worker does to its memory in between.
        return self._pieces(method, request, lambda: self._calls.pushes_wait)

    def _pieces(
        self,
        method: Method[Piece[Any], Any],
        request: Frame,
        copies: Callable[[], bool],
    ) -> Iterator[Piece[Any]]:
        """Yield a request's message, then its body if that lies in memory.

        Whether that is to be a copy is asked when it is wanted, and not before.
        What is wrong with it comes up when it is asked for, and so is counted.
        """
        yield marking(method.request.decode)(request.message)
        if request.upload:
            memory = self._memory(request.upload).view()[: request.body_nbytes]
            yield Piece(None, 0, (copied(memory) if copies() else memory).data)

    def _whole(self, pulled: PulledSnapshot, request: Frame) -> tuple[PullPiece, int]:
        """Return a snapshot's message, and how many bytes were written to memory."""
        if pulled.variables is None:
            return Piece(pulled.header), 0
        nbytes = pulled.layout.nbytes
        if nbytes <= MAX_INLINE_NBYTES:
            data = body.join(pulled.layout, pulled.variables)
            return Piece(pulled.header, 0, data), 0
        self._require_room(nbytes, request)
        memory = self._memory(request.download).view()
        body.copy(pulled.layout, pulled.variables, memory)
        return Piece(pulled.header), nbytes

    def _require_room(self, nbytes: int, request: Frame) -> None:
        if nbytes <= MAX_INLINE_NBYTES:
            return
        room = self._memory(request.download).nbytes
        if room < nbytes:
            raise InvalidRequestError(
                f"download: expected memory of at least {nbytes} bytes, got {room}"
            )

    def _memory(self, number: int) -> SharedMemory:
        memory = self._memories.get(number)
        if memory is None:
            raise InvalidRequestError(
                f"memory: expected one that has been attached, got number {number}"
            )
        return memory


def _with_body(message: bytes, request: Frame, nbytes: int) -> Frame:
    download = request.download if nbytes else 0
    return Frame(Kind.ANSWER, message, download=download, body_nbytes=nbytes)


def _nbytes(frame: Frame) -> int:
    return len(frame.message) + frame.body_nbytes
