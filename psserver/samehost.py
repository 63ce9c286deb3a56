"""The calls over a unix socket, for workers on this host."""

import logging
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from psserver.calls import Calls, Pulled
from psserver.malformed import marking
from pswire import body, methods
from pswire.errors import InvalidRequestError, to_bytes
from pswire.memory import copied
from pswire.methods import Method, PullPiece
from pswire.pieces import Exchanged, Piece
from pswire.samehost import MAX_INLINE_NBYTES, Frame, FrameSocket, Kind
from pswire.sharedmemory import SharedMemory

_MAX_WORKERS = 1024  # Each holds a thread.
_MAX_MEMORIES = 8  # Of one worker, at once.
_RETRY_S = 0.1
_SEND_TIMEOUT_S = 30  # Answers are small: who does not take one has stopped.

_log = logging.getLogger("psserver")


class SameHost:
    """Listens on a unix socket that only this user's processes can open."""

    def __init__(self, calls: Calls, incarnation: str) -> None:
        """Listen.

        Raises:
            OSError: There is no place for the socket.
        """
        self._calls = calls
        self._greeting = Frame(Kind.ANSWER, incarnation.encode())
        self._home = Path(tempfile.mkdtemp(prefix="asyncps-"))  # Of mode 0700.
        self._workers: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()  # Guards `_workers`.
        self._stopped = threading.Event()
        try:
            self._listener = self._listen()
        except OSError:
            shutil.rmtree(self._home)
            raise
        # Daemons: a program that never stops its server can still end.
        self._acceptor = threading.Thread(
            target=self._accept, name="samehost", daemon=True
        )
        self._acceptor.start()

    @property
    def path(self) -> str:
        """Where the socket is."""
        return str(self._home / "socket")

    def stop(self, grace_s: float) -> None:
        """Take no further requests, let those in flight finish, and close.

        Args:
            grace_s: How long to wait for them, in seconds.
        """
        deadline = time.monotonic() + grace_s
        self._stopped.set()
        with self._lock:
            workers = dict(self._workers)
        for connection in (self._listener, *workers):
            # Whoever waits for a frame wakes up; what is being answered still can be.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self._acceptor.join()
        self._listener.close()
        for connection, thread in workers.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            connection.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self.path)
            os.chmod(self.path, 0o600)
            listener.listen()
        except OSError:
            listener.close()
            raise
        return listener

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._stopped.is_set():
                    return
                _log.warning("a worker on this host cannot connect: %s", error)
                self._stopped.wait(_RETRY_S)
                continue
            thread = threading.Thread(
                target=self._serve,
                args=(connection,),
                name="samehost worker",
                daemon=True,
            )
            with self._lock:
                if self._stopped.is_set() or len(self._workers) >= _MAX_WORKERS:
                    connection.close()
                    continue
                try:
                    thread.start()
                except RuntimeError as error:  # The system has no thread left.
                    _log.warning("a worker on this host cannot be served: %s", error)
                    connection.close()
                    continue
                self._workers[connection] = thread

    def _serve(self, connection: socket.socket) -> None:
        frames = FrameSocket(connection)
        worker = _Worker(self._calls, lambda: self._waits(connection))
        try:
            timeout = struct.pack("ll", _SEND_TIMEOUT_S, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            frames.send(self._greeting)
            while (request := frames.receive()) is not None:
                answer = worker.answer(request)
                if answer is not None:
                    frames.send(answer)
        except (OSError, InvalidRequestError) as error:
            _log.info("a worker on this host went away: %s", error)
        finally:
            with self._lock:
                del self._workers[connection]
            connection.close()

    def _waits(self, connection: socket.socket) -> bool:
        """Say whether the worker is still there to take its answer."""
        if self._stopped.is_set():
            return True  # Nothing can be read any more: it may be, and it may not.
        try:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


class _Worker:
    """One worker's end: its memories, and the answers to its requests."""

    def __init__(self, calls: Calls, is_wanted: Callable[[], bool]) -> None:
        self._calls = calls
        self._is_wanted = is_wanted
        self._memories: dict[int, SharedMemory] = {}

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
        try:
            return self._answer(request)
        except Exception as error:
            return Frame(Kind.ERROR, to_bytes(error))

    def _answer(self, request: Frame) -> Frame:
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
        pieces = map(_copied, self._pieces(methods.INITIALIZE, request))
        reply = self._calls.initialize(pieces)
        return Frame(Kind.ANSWER, methods.INITIALIZE.reply.encode(reply))

    def _pull(self, request: Frame) -> Frame:
        pull = marking(methods.PULL.request.decode)(request.message)
        piece, download = self._whole(self._calls.pull(pull), request)
        return Frame(Kind.ANSWER, methods.PULL.reply.encode(piece), download=download)

    def _push(self, request: Frame) -> Frame:
        pieces = self._pieces(methods.PUSH, request)
        _, verdict = self._calls.push(pieces, self._is_wanted)
        return Frame(Kind.ANSWER, methods.PUSH.reply.encode(verdict.to_proto()))

    def _exchange(self, request: Frame) -> Frame:
        header, verdict = self._calls.push(
            self._pieces(methods.EXCHANGE, request),
            self._is_wanted,
            lambda header: self._require_room(
                self._calls.snapshot_nbytes(header.session, header.snapshot_encoding),
                request,
            ),
        )
        pull, download = self._whole(self._calls.pull_after(header), request)
        exchanged = Exchanged(verdict.to_proto(), pull)
        return Frame(
            Kind.ANSWER, methods.EXCHANGE.reply.encode(exchanged), download=download
        )

    def _status(self, request: Frame) -> Frame:
        status = self._calls.status(
            marking(methods.STATUS.request.decode)(request.message)
        )
        return Frame(Kind.ANSWER, methods.STATUS.reply.encode(status))

    def _pieces(
        self, method: Method[Piece[Any], Any], request: Frame
    ) -> Iterator[Piece[Any]]:
        """Yield a request's message, then its body if that lies in memory.

        What is wrong with it comes up when it is asked for, and so is counted.
        """
        yield marking(method.request.decode)(request.message)
        if request.upload:
            memory = self._memory(request.upload).view()
            yield Piece(None, 0, memory[: request.body_nbytes].data)

    def _whole(self, pulled: Pulled, request: Frame) -> tuple[PullPiece, int]:
        """Return a snapshot's message, and the memory that its body was written to."""
        if pulled.variables is None:
            return Piece(pulled.header), 0
        nbytes = pulled.layout.nbytes
        if nbytes <= MAX_INLINE_NBYTES:
            data = body.join(pulled.layout, pulled.variables)
            return Piece(pulled.header, 0, data), 0
        self._require_room(nbytes, request)
        memory = self._memory(request.download).view()
        body.copy(pulled.layout, pulled.variables, memory)
        return Piece(pulled.header), request.download

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


def _copied(piece: Piece[Any]) -> Piece[Any]:
    if piece.header is not None:
        return piece
    return Piece(None, 0, copied(np.frombuffer(piece.data, np.uint8)).data)
