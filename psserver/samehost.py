"""The unix socket for workers on this host, and the threads that answer them."""

import logging
import os
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from psserver.calls import Calls
from psserver.frames import CALLS, FrameCalls
from psserver.metrics.meter import CallMeter, Meter
from psserver.security.access import Access
from pswire.errors import InvalidRequestError
from pswire.samehost import Frame, FrameSocket, Kind

_MAX_WORKERS = 1024  # Each holds a descriptor, and one for each of its memories.
_PATIENCE_S = 0.05
_SEND_TIMEOUT_S = 30  # Answers are small: who does not take one has stopped.

# That an end is ready is told once, to one thread, which says when it is told again.
_ONCE = select.EPOLLIN | select.EPOLLONESHOT

_log = logging.getLogger("psserver")


class _Worker:
    """One worker's connection.

    Attributes:
        is_busy: Whether a thread reads its next request, or answers it.
    """

    def __init__(self, connection: socket.socket, calls: FrameCalls) -> None:
        self.connection = connection
        self.descriptor = connection.fileno()
        self.frames = FrameSocket(connection)
        self.calls = calls
        self.is_busy = False


class _Leader:
    """A turn at answering all that is quick; it ends when another one begins.

    Attributes:
        busy_since: When the call came that is being answered, in seconds; None: all
            wait for the next one.
    """

    busy_since: float | None = None


class SameHost:
    """Serves a unix socket that only this user's processes can open.

    One thread, the leader, answers every call that is quick: threads that take the
    interpreter from one another at each get half as much done. A call that copies large
    bodies, or compiles a rule, has a thread of its own. If one is not as quick as
    it looked, say because the rule takes long, another thread takes the lead, so that
    nobody waits for it.
    """

    def __init__(
        self,
        calls: Calls,
        incarnation: str,
        access: Access,
        meter: Meter | None = None,
    ) -> None:
        """Listen.

        Args:
            calls: What every call means.
            incarnation: This start of the server.
            access: Who may call.
            meter: Measures calls; None: nobody asks.

        Raises:
            OSError: There is no place for the socket.
        """
        self._calls = calls
        self._access = access
        self._meters: dict[int, CallMeter] = {}
        if meter:
            for kind, method in CALLS.items():
                self._meters[kind] = CallMeter(meter, "samehost", method.name)
        self._greeting = Frame(Kind.ANSWER, incarnation.encode())
        self._home = Path(tempfile.mkdtemp(prefix="asyncps-"))  # Of mode 0700.
        # Guards `_workers` and `_threads`; nothing is added to them after `_stopped`.
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}
        self._threads: set[threading.Thread] = set()
        self._stopped = threading.Event()
        try:
            self._listener = self._listen()
        except OSError:
            shutil.rmtree(self._home)
            raise
        self._ready = select.epoll()
        self._ready.register(self._listener, _ONCE)
        self._leader = _Leader()
        self._start("samehost leader", self._lead)
        self._start("samehost watch", self._watch)

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
        with self._lock:
            if self._stopped.is_set():
                return
            self._stopped.set()
            workers, threads = list(self._workers.values()), list(self._threads)
        # Whoever leads wakes up; what is being answered still can be.
        for end in (self._listener, *(worker.connection for worker in workers)):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
        self._ready.modify(self._listener, select.EPOLLIN)
        for worker in workers:
            if not worker.is_busy:
                worker.frames.close()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for worker in workers:
            worker.frames.close()
        # Whoever has stopped this may keep it; the workers' memory is not kept with it.
        with self._lock:
            self._workers.clear()
        self._listener.close()
        self._ready.close()
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

    def _start(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """Start a thread.

        Raises:
            RuntimeError: The system has none left.
        """
        # A daemon: a program that never stops its server can still end.
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        with self._lock:
            if not self._stopped.is_set():
                thread.start()
                alive = {other for other in self._threads if other.is_alive()}
                self._threads = alive | {thread}

    def _lead(self) -> None:
        leader = self._leader = _Leader()
        while self._leader is leader and not self._stopped.is_set():
            ((descriptor, _),) = self._ready.poll(maxevents=1)
            leader.busy_since = time.monotonic()
            if descriptor == self._listener.fileno():
                self._accept()
            else:
                self._serve(self._workers[descriptor])
            leader.busy_since = None

    def _watch(self) -> None:
        """Let another thread lead if the leader answers one call for too long."""
        while not self._stopped.wait(_PATIENCE_S):
            since = self._leader.busy_since
            if since is not None and time.monotonic() - since > _PATIENCE_S:
                try:
                    self._start("samehost leader", self._lead)
                except RuntimeError as error:
                    _log.warning(
                        "workers on this host have to wait: %s",
                        error,
                        extra={"event": "same_host_waits", "error": str(error)},
                    )
            # It may have failed to take a connection, for want of descriptors.
            self._await(self._listener)

    def _await(self, end: socket.socket) -> None:
        """Let the leader know when there is something to read."""
        # After a stop there is nothing to wait for, and perhaps nobody to tell.
        with suppress(OSError, ValueError):
            self._ready.modify(end, _ONCE)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if not self._stopped.is_set():
                _log.warning(
                    "a worker on this host cannot connect: %s",
                    error,
                    extra={"event": "same_host_refused", "error": str(error)},
                )
            return
        self._await(self._listener)
        is_wanted = partial(self._waits, connection)
        calls = FrameCalls(self._calls, is_wanted, self._meters, self._access)
        worker = _Worker(connection, calls)
        try:
            timeout = struct.pack("ll", _SEND_TIMEOUT_S, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            worker.frames.send(self._greeting)
        except OSError as error:
            self._drop(worker, error)
            return
        with self._lock:
            if self._stopped.is_set() or len(self._workers) >= _MAX_WORKERS:
                worker.frames.close()
            else:
                self._workers[worker.descriptor] = worker
                self._ready.register(connection, _ONCE)

    def _serve(self, worker: _Worker) -> None:
        worker.is_busy = True
        try:
            request = worker.frames.receive(wait=False)
        except BlockingIOError:
            self._await_next(worker)  # The rest is still to come.
            return
        except (OSError, InvalidRequestError) as error:
            self._drop(worker, error)
            return
        if request is None:
            self._drop(worker)
        elif worker.calls.is_quick(request):
            self._answer(worker, request)
        else:
            try:
                self._start("samehost call", self._answer, worker, request)
            except RuntimeError as error:
                self._drop(worker, error)

    def _answer(self, worker: _Worker, request: Frame) -> None:
        try:
            answer = worker.calls.answer(request)
            if answer is not None:
                worker.frames.send(answer)
        except (OSError, InvalidRequestError) as error:
            self._drop(worker, error)
        else:
            self._await_next(worker)

    def _await_next(self, worker: _Worker) -> None:
        worker.is_busy = False
        self._await(worker.connection)

    def _drop(self, worker: _Worker, error: Exception | None = None) -> None:
        if error:
            _log.info(
                "a worker on this host went away: %s",
                error,
                extra={"event": "same_host_lost", "error": str(error)},
            )
        with self._lock:
            self._workers.pop(worker.descriptor, None)
        worker.frames.close()

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
