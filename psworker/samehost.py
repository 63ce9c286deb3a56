"""The calls over the server's unix socket, for a worker on its host."""

import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from pswire import body, methods
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Arrays, Bytes
from pswire.errors import (
    DeadlineError,
    InternalError,
    InvalidRequestError,
    ServerUnavailableError,
    from_bytes,
)
from pswire.layout import Layout
from pswire.memory import copied
from pswire.methods import Method, PullPiece
from pswire.pieces import Piece
from pswire.samehost import MAX_INLINE_NBYTES, Frame, FrameSocket, Kind
from pswire.sharedmemory import SharedMemory

Reply = TypeVar("Reply")

_UCRED = "iII"  # The process, the user and the group of who has the other end.
_CONNECT_TIMEOUT_S = 1.0
_MAX_LENT = 3  # Snapshots that the caller may hold without a copy.


class SameHost:
    """A `Transport` over one unix socket; calls of several threads take turns.

    A failure of the socket ends it: every later call fails at once.
    """

    def __init__(self, path: str, incarnation: str, authorization: str = "") -> None:
        """Connect.

        Args:
            path: Where the server says its socket is.
            incarnation: Which server is meant. Another one, and who is no server at
                all, gets nothing from us.
            authorization: What to show the server; empty: nothing.

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
        self._ended = False
        try:
            self._wait_at_most(_CONNECT_TIMEOUT_S)
            self._socket.connect(path)
            self._require_same_user()
            if self._receive().message != incarnation.encode():
                raise ConnectionError("expected the server of this host")
            if authorization:
                self._frames.send(Frame(Kind.AUTHORIZE, authorization.encode()))
        except (OSError, InvalidRequestError) as error:
            self._frames.close()
            raise OSError(f"{path}: {error}") from error

    @property
    def has_ended(self) -> bool:
        """Whether no call can be answered any more."""
        return self._ended

    def close(self) -> None:
        self._ended = True
        # A thread that waits for an answer wakes up.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._frames.close()

    def initialize(
        self,
        header: pb.InitializeHeader,
        layout: Layout,
        arrays: Arrays,
        timeout: float,
    ) -> pb.InitializeReply:
        with self._turn():
            request = self._request(
                Kind.INITIALIZE, methods.INITIALIZE, header, layout, arrays
            )
            return self._call(request, methods.INITIALIZE.reply.decode, timeout)[0]

    def pull(
        self, request: pb.PullRequest, nbytes: int, timeout: float
    ) -> Iterator[PullPiece]:
        with self._turn():
            download = self._room(nbytes)
            message = methods.PULL.request.encode(request)
            frame = Frame(Kind.PULL, message, download=_number(download))
            piece, answer = self._call(frame, methods.PULL.reply.decode, timeout)
            return iter((self._taken(piece, answer, download, nbytes),))

    def push(
        self, header: pb.PushHeader, layout: Layout, arrays: Arrays, timeout: float
    ) -> pb.PushReply:
        with self._turn():
            request = self._request(Kind.PUSH, methods.PUSH, header, layout, arrays)
            return self._call(request, methods.PUSH.reply.decode, timeout)[0]

    def exchange(
        self,
        header: pb.PushHeader,
        layout: Layout,
        arrays: Arrays,
        nbytes: int,
        timeout: float,
    ) -> tuple[pb.PushReply, Iterator[PullPiece]]:
        with self._turn():
            download = self._room(nbytes)
            request = self._request(
                Kind.EXCHANGE, methods.EXCHANGE, header, layout, arrays, download
            )
            decode = methods.EXCHANGE.reply.decode
            reply, answer = self._call(request, decode, timeout)
            if reply.push is None:
                raise InternalError(f"{self._path}: expected a verdict, got none")
            pull = self._taken(reply.pull, answer, download, nbytes)
        return reply.push, iter((pull,))

    def status(self, timeout: float) -> pb.StatusReply:
        with self._turn():
            request = methods.STATUS.request.encode(pb.StatusRequest())
            frame = Frame(Kind.STATUS, request)
            return self._call(frame, methods.STATUS.reply.decode, timeout)[0]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            # Before anything is written: the server may still read the last gradients.
            if self._ended:
                raise ServerUnavailableError(f"{self._path}: the socket has ended")
            yield

    def _call(
        self, request: Frame, decode: Callable[[bytes], Reply], timeout: float
    ) -> tuple[Reply, Frame]:
        with self._ending():
            self._wait_at_most(timeout)
            self._frames.send(request)
            answer = self._receive()
            if answer.kind != Kind.ERROR:
                return decode(answer.message), answer
        raise from_bytes(answer.message)

    def _receive(self) -> Frame:
        frame = self._frames.receive()
        if frame is None:
            raise ConnectionError("the server has closed it")
        for descriptor in frame.descriptors:
            os.close(descriptor)  # Nothing of the server's is for us to map.
        return frame

    def _require_same_user(self) -> None:
        # What a server says of itself, anybody may have heard of it.
        size = struct.calcsize(_UCRED)
        got = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, user, _ = struct.unpack(_UCRED, got)
        if user != os.geteuid():
            raise ConnectionError(f"expected a server of user {os.geteuid()}")

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Close the socket if the block fails, for the caller to go elsewhere."""
        try:
            yield
        except BlockingIOError as error:
            self.close()  # The answer may still come, to nobody.
            raise DeadlineError(f"{self._path}: no answer in time") from error
        except OSError as error:
            self.close()
            raise ServerUnavailableError(f"{self._path}: {error}") from error
        except DecodeError as error:
            self.close()
            raise InternalError(f"{self._path}: {error}") from error
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
        download: "_Memory | None" = None,
    ) -> Frame:
        """Return a request that carries a body, or says where one is."""
        if layout.nbytes <= MAX_INLINE_NBYTES:
            piece = Piece(header, 0, body.join(layout, arrays))
            message = method.request.encode(piece)
            return Frame(kind, message, download=_number(download))
        if self._upload is None or self._upload.nbytes < layout.nbytes:
            self._drop(self._upload)
            self._upload = self._attach(layout.nbytes)
        body.copy(layout, arrays, self._upload.bytes)
        return Frame(
            kind,
            method.request.encode(Piece(header)),
            upload=self._upload.number,
            download=_number(download),
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
        if download is None:
            raise InternalError(f"{self._path}: expected no memory, got one")
        lent = sum(memory.is_lent() for memory in self._downloads)
        view = download.lend()[:nbytes]
        # Who holds on to many snapshots gets a copy, lest each take another memory.
        kept = view if lent < _MAX_LENT else copied(view)
        return Piece(piece.header, 0, kept.data)

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
