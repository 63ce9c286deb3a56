"""A network that is as bad as a test wants it: a TCP relay on loopback."""

import asyncio
import ctypes
import enum
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

Answer = TypeVar("Answer")

_PIECE_NBYTES = 2**12
_MAX_PIECES = 16  # Under way in one direction of a connection.
_SO_ATTACH_FILTER = 26  # Linux's; Python does not name it.
_DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)  # Of a packet, accept 0 bytes.


class Fate(enum.Enum):
    """What becomes of bytes."""

    PASS = enum.auto()
    HOLD = enum.auto()
    """They wait, and so does the news that the sender has closed: half-open."""
    SWALLOW = enum.auto()
    """They vanish: TCP allows no such thing, so the connection is to be cut then."""


class TcpRelay:
    """Passes bytes between whoever connects to it and a server.

    Attributes:
        address: HOST:PORT, where it listens.
        target: HOST:PORT of the server, for connections from now on.
        delay_s: How long every byte is under way, in seconds.
        rate: How many bytes a second pass each way of a connection; None: any number.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.delay_s = 0.0
        self.rate: float | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._thread.start()
        # All below is of the loop's thread alone.
        self._requests, self._replies = _Gate(), _Gate()
        self._connections: set[asyncio.Task[None] | None] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._server = self._run(
            lambda: asyncio.start_server(self._serve, "127.0.0.1", 0)
        )
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def set_requests(self, fate: Fate) -> threading.Event:
        """Decide what becomes of what goes to the server.

        Returns:
            Set once there are bytes that do not pass.
        """
        return self._run(lambda: self._requests.set(fate))

    def set_replies(self, fate: Fate) -> threading.Event:
        """Decide what becomes of what comes from the server, likewise."""
        return self._run(lambda: self._replies.set(fate))

    def cut(self) -> None:
        """Fail all connections; others may be made."""
        self._run(self._cut)

    def vanish(self) -> None:
        """Have both ends of all connections hear nothing more, not even of TCP itself.

        As if a machine had lost its power, or a link its cable.
        """
        self._run(self._vanish)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, make: Callable[[], Awaitable[Answer]]) -> Answer:
        async def run() -> Answer:
            return await make()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _cut(self) -> None:
        connections = list(filter(None, self._connections))
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)

    async def _vanish(self) -> None:
        drop_all = ctypes.create_string_buffer(_DROP_ALL)
        program = struct.pack("HP", 1, ctypes.addressof(drop_all))
        for end in self._ends:
            # The kernel drops what comes for it, and so acknowledges nothing.
            end.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, program
            )

    async def _close(self) -> None:
        self._server.close()
        await self._cut()

    async def _serve(
        self, requests: asyncio.StreamReader, near: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            await self._connect(requests, near)
        except (OSError, asyncio.CancelledError):
            pass  # It has failed, at one end or by `cut`, so it fails at both.
        finally:
            near.transport.abort()
            self._connections.remove(task)

    async def _connect(
        self, requests: asyncio.StreamReader, near: asyncio.StreamWriter
    ) -> None:
        host, _, port = self.target.rpartition(":")
        replies, far = await asyncio.open_connection(host, int(port))
        self._ends |= {near, far}
        ways = (
            _Way(self, requests, far, self._requests),
            _Way(self, replies, near, self._replies),
        )
        try:
            async with asyncio.TaskGroup() as steps:
                for way in ways:
                    steps.create_task(way.receive())
                    steps.create_task(way.send())
        except* OSError:
            pass
        finally:
            self._ends -= {near, far}
            far.transport.abort()


class _Gate:
    def __init__(self) -> None:
        self._fate = Fate.PASS
        self._changed = asyncio.Event()
        self._seen = threading.Event()

    async def set(self, fate: Fate) -> threading.Event:
        self._fate, self._seen = fate, threading.Event()
        self._changed.set()
        self._changed = asyncio.Event()
        return self._seen

    async def lets_through(self) -> bool:
        """Say whether bytes that have come this far arrive, once that is known."""
        while self._fate is Fate.HOLD:
            self._seen.set()
            await self._changed.wait()
        if self._fate is Fate.PASS:
            return True
        self._seen.set()
        return False


class _Way:
    """One direction of one connection."""

    def __init__(
        self,
        relay: TcpRelay,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: _Gate,
    ) -> None:
        self._relay = relay
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(0)  # So `drain` waits for all of it.
        self._gate = gate
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_PIECES)
        self._time = asyncio.get_running_loop().time

    async def receive(self) -> None:
        free_at = 0.0  # When all that has come will have left.
        data = b"?"
        while data:
            data = await self._reader.read(_PIECE_NBYTES)
            free_at = max(free_at, self._time())
            if self._relay.rate:
                free_at += len(data) / self._relay.rate
            await self._under_way.put((free_at + self._relay.delay_s, data))

    async def send(self) -> None:
        data = b"?"
        while data:
            due, data = await self._under_way.get()
            await asyncio.sleep(due - self._time())
            if await self._gate.lets_through():
                if data:
                    self._writer.write(data)
                    await self._writer.drain()
                else:
                    self._writer.write_eof()
