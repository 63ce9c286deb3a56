"""The calls over the server's unix socket, for a worker on its host."""

import os
import socket
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from pswire import body, methods
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Arrays, Buffer, Bytes
from pswire.errors import (
    DeadlineError,
    InternalError,
    InvalidRequestError,
    ServerUnavailableError,
    from_bytes,
)
from pswire.layout import Layout
from pswire.memory import aligned, fill
from pswire.methods import Method, PullPiece
from pswire.pieces import Piece
from pswire.samehost import MAX_INLINE_NBYTES, Frame, FrameSocket, Kind
from pswire.sharedmemory import SharedMemory

_CONNECT_TIMEOUT_S = 1.0
_MAX_LENT = 3  # Snapshots that the caller may hold without a copy.


class SameHost:
    """A `Transport` over one unix socket; calls of several threads take turns.

    A failure of the socket ends it: every later call fails at once.
    """

    def __init__(self, path: str, incarnation: str) -> None:
        """Connect.

        Args:
            path: Where the server says its socket is.
            incarnation: Which server is meant. Another one, and who is no server at
                all, gets nothing from us.

        Raises:
            OSError: There is no such socket, or another server behind it.
        """
        self._path = path
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._frames = FrameSocket(self._socket)
        self._upload: _Memory | None = None
        self._downloads: list[_Memory] = []
        self._number = 0
        self._timeout = 0.0
        try:
            self._wait_at_most(_CONNECT_TIMEOUT_S)
            self._socket.connect(path)
            greeting = self._frames.receive()
            if greeting is None or greeting.message != incarnation.encode():
                raise ConnectionError(f"{path}: expected the server of this host")
        except (OSError, InvalidRequestError) as error:
            self._socket.close()
            raise OSError(f"{path}: {error}") from error

    def close(self) -> None:
        # A thread that waits for an answer wakes up.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def initialize(
        self,
        header: pb.InitializeHeader,
        layout: Layout,
        arrays: Arrays,
        timeout: float,
    ) -> pb.InitializeReply:
        with self._lock:
            request = self._request(
                Kind.INITIALIZE, methods.INITIALIZE, header, layout, arrays
            )
            answer = self._call(request, timeout)
        return methods.INITIALIZE.reply.decode(answer.message)

    def pull(
        self, request: pb.PullRequest, nbytes: int, timeout: float
    ) -> Iterator[PullPiece]:
        with self._lock:
            download = self._room(nbytes)
            message = methods.PULL.request.encode(request)
            frame = Frame(Kind.PULL, message, download=_number(download))
            answer = self._call(frame, timeout)
            piece = methods.PULL.reply.decode(answer.message)
            return iter((self._taken(piece, answer, download, nbytes),))

    def push(
        self, header: pb.PushHeader, layout: Layout, arrays: Arrays, timeout: float
    ) -> pb.PushReply:
        with self._lock:
            request = self._request(Kind.PUSH, methods.PUSH, header, layout, arrays)
            answer = self._call(request, timeout)
        return methods.PUSH.reply.decode(answer.message)

    def exchange(
        self,
        header: pb.PushHeader,
        layout: Layout,
        arrays: Arrays,
        nbytes: int,
        timeout: float,
    ) -> tuple[pb.PushReply, Iterator[PullPiece]]:
        with self._lock:
            request = self._request(
                Kind.EXCHANGE, methods.EXCHANGE, header, layout, arrays
            )
            download = self._room(nbytes)
            answer = self._call(replace(request, download=_number(download)), timeout)
            reply = methods.EXCHANGE.reply.decode(answer.message)
            if reply.push is None:
                raise InternalError(f"{self._path}: expected a verdict, got none")
            pull = self._taken(reply.pull, answer, download, nbytes)
        return reply.push, iter((pull,))

    def status(self, timeout: float) -> pb.StatusReply:
        with self._lock:
            request = methods.STATUS.request.encode(pb.StatusRequest())
            answer = self._call(Frame(Kind.STATUS, request), timeout)
        return methods.STATUS.reply.decode(answer.message)

    def _call(self, request: Frame, timeout: float) -> Frame:
        with self._ending():
            self._wait_at_most(timeout)
            self._frames.send(request)
            answer = self._frames.receive()
            if answer is None:
                raise ConnectionError("the server has closed it")
        if answer.kind == Kind.ERROR:
            raise from_bytes(answer.message)
        return answer

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Close the socket if the block fails on it, for the caller to go elsewhere."""
        try:
            yield
        except BlockingIOError as error:
            self.close()  # The answer may still come, to nobody.
            raise DeadlineError(f"{self._path}: no answer in time") from error
        except OSError as error:
            self.close()
            raise ServerUnavailableError(f"{self._path}: {error}") from error
        except BaseException:
            self.close()  # Else the next call would be given this one's answer.
            raise

    def _wait_at_most(self, timeout: float) -> None:
        # The kernel keeps the time: with `settimeout`, Python asks it twice each time.
        if timeout == self._timeout:
            return
        # All zeros would mean to wait for ever.
        timeval = struct.pack("ll", int(timeout), max(1, int(timeout % 1 * 1e6)))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, timeval)
        self._timeout = timeout

    def _request(
        self,
        kind: Kind,
        method: Method[Piece[Any], Any],
        header: Any,
        layout: Layout,
        arrays: Arrays,
    ) -> Frame:
        """Return a request that carries a body, or says where one is."""
        if layout.nbytes <= MAX_INLINE_NBYTES:
            piece = Piece(header, 0, body.join(layout, arrays))
            return Frame(kind, method.request.encode(piece))
        if self._upload is None or self._upload.nbytes < layout.nbytes:
            self._drop(self._upload)
            self._upload = self._attach(layout.nbytes)
        body.copy(layout, arrays, self._upload.bytes)
        return Frame(
            kind,
            method.request.encode(Piece(header)),
            upload=self._upload.number,
            body_nbytes=layout.nbytes,
        )

    def _room(self, nbytes: int) -> "_Memory | None":
        """Return memory for a snapshot, which nobody reads any more; None: no need."""
        if nbytes <= MAX_INLINE_NBYTES:
            return None
        for memory in self._downloads:
            if memory.nbytes < nbytes:
                self._drop(memory)
        self._downloads = [m for m in self._downloads if m.nbytes >= nbytes]
        free = next((m for m in self._downloads if not m.is_lent()), None)
        if free is None:
            free = self._attach(nbytes)
            self._downloads.append(free)
        return free

    def _taken(
        self, piece: PullPiece, answer: Frame, download: "_Memory | None", nbytes: int
    ) -> PullPiece:
        """Return an answer's message with its body."""
        if not answer.download:
            return piece
        assert download is not None  # The server uses only what we have offered.
        lent = sum(memory.is_lent() for memory in self._downloads)
        view = download.lend()[:nbytes]
        # Who holds on to many snapshots gets a copy, lest each take another memory.
        data: Buffer = view.data if lent < _MAX_LENT else _copied(view)
        return Piece(piece.header, 0, data)

    def _attach(self, nbytes: int) -> "_Memory":
        self._number += 1
        with self._ending():
            memory, descriptor = SharedMemory.create(nbytes)
            try:
                self._frames.send(
                    Frame(Kind.ATTACH, upload=self._number, descriptors=(descriptor,))
                )
            finally:
                os.close(descriptor)
        return _Memory(memory, self._number)

    def _drop(self, memory: "_Memory | None") -> None:
        if memory is not None:
            with self._ending():
                self._frames.send(Frame(Kind.DETACH, upload=memory.number))


class _Memory:
    """Memory that the server has attached, and who still reads what came in it."""

    def __init__(self, memory: SharedMemory, number: int) -> None:
        self._memory = memory
        self.number = number
        self.nbytes = memory.nbytes
        self.bytes = memory.view()
        self._lent: weakref.ref[Bytes] | None = None

    def lend(self) -> Bytes:
        """Return the bytes; whatever is made of them without a copy keeps them lent."""
        view = self._memory.view()
        self._lent = weakref.ref(view)
        return view

    def is_lent(self) -> bool:
        return self._lent is not None and self._lent() is not None


def _number(memory: _Memory | None) -> int:
    return memory.number if memory else 0


def _copied(view: Bytes) -> Buffer:
    memory = aligned(len(view))
    fill(memory, view)
    return memory.data
