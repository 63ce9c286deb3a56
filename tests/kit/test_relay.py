"""The relay passes bytes, and is as bad as it is told to be."""

import fcntl
import socket
import struct
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from random import Random

import pytest

from kit.relay import Fate, TcpRelay

TIMEOUT_S = 30.0


class Ends:
    """Both ends of connections through a relay."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listener.settimeout(TIMEOUT_S)
        host, port = self._listener.getsockname()
        self.relay = stack.enter_context(TcpRelay(f"{host}:{port}"))

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a client's end and the server's."""
        host, _, port = self.relay.address.rpartition(":")
        near = socket.create_connection((host, int(port)), TIMEOUT_S)
        self._stack.enter_context(near)
        far, _ = self._listener.accept()
        far.settimeout(TIMEOUT_S)
        return self._stack.enter_context(near), self._stack.enter_context(far)


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Make a relay, and a server behind it."""
    with ExitStack() as stack:
        yield Ends(stack)


def receive(end: socket.socket, nbytes: int) -> bytes:
    """Wait for so many bytes."""
    data = bytearray()
    while len(data) < nbytes and (piece := end.recv(nbytes - len(data))):
        data += piece
    return bytes(data)


def has_failed(end: socket.socket) -> bool:
    """Wait until there is something; say whether it is the end."""
    try:
        return end.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_pass_both_ways_until_each_end_closes(ends: Ends) -> None:
    """Each closes its own; 10 MB are more than what is under way can be."""
    near, far = ends.connect()
    request, reply = b"request", Random(1).randbytes(10_000_000)

    def answer() -> None:
        far.sendall(reply)
        far.close()

    near.sendall(request)
    near.shutdown(socket.SHUT_WR)
    asked = receive(far, len(request) + 1)
    with ThreadPoolExecutor(1, "test") as pool:
        answering = pool.submit(answer)
        answered = receive(near, len(reply) + 1)

    assert answering.result() is None
    assert asked == request
    assert answered == reply


def test_a_cut_fails_all_connections_but_no_later_one(ends: Ends) -> None:
    """At both ends."""
    before = [ends.connect() for _ in range(2)]

    ends.relay.cut()

    assert all(has_failed(end) for pair in before for end in pair)
    near, far = ends.connect()
    near.sendall(b"again")
    assert receive(far, 5) == b"again"


def test_what_is_held_comes_later(ends: Ends) -> None:
    """One way alone; that the sender has gone is held back too: it is half-open."""
    near, far = ends.connect()

    held = ends.relay.set_requests(Fate.HOLD)
    near.sendall(b"request")
    assert held.wait(TIMEOUT_S)
    far.sendall(b"reply")
    assert receive(near, 5) == b"reply"
    near.close()
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    far.settimeout(TIMEOUT_S)
    ends.relay.set_requests(Fate.PASS)

    assert receive(far, 8) == b"request"


def test_what_is_swallowed_never_comes(ends: Ends) -> None:
    """What is sent afterwards does."""
    near, far = ends.connect()

    swallowed = ends.relay.set_replies(Fate.SWALLOW)
    far.sendall(b"lost")
    assert swallowed.wait(TIMEOUT_S)
    ends.relay.set_replies(Fate.PASS)
    far.sendall(b"found")

    assert receive(near, 5) == b"found"


def test_a_slow_connection_is_never_faster_than_it_says(ends: Ends) -> None:
    """No load makes it: 64 KB/s each way, or 50 ms under way."""
    near, far = ends.connect()
    ends.relay.rate = 64_000
    began = time.monotonic()
    near.sendall(bytes(16_000))
    receive(far, 16_000)
    slow_s = time.monotonic() - began

    ends.relay.rate, ends.relay.delay_s = None, 0.05
    began = time.monotonic()
    near.sendall(b"ping")
    receive(far, 4)
    far.sendall(b"pong")
    receive(near, 4)
    late_s = time.monotonic() - began

    assert slow_s >= 0.25
    assert late_s >= 0.1


def test_the_server_may_move(ends: Ends) -> None:
    """Without one, a connection fails at once; with another, it goes there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as gone:
        ends.relay.target = "{}:{}".format(*gone.getsockname())
    host, _, port = ends.relay.address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as orphan:
        assert has_failed(orphan)

    with socket.create_server(("127.0.0.1", 0)) as other:
        ends.relay.target = "{}:{}".format(*other.getsockname())
        with socket.create_connection((host, int(port)), TIMEOUT_S) as near:
            near.sendall(b"hello")
            far, _ = other.accept()
            with far:
                assert receive(far, 5) == b"hello"


def test_an_end_that_vanishes_neither_takes_bytes_nor_says_so(ends: Ends) -> None:
    """Not even TCP does: what is sent stays where it is."""
    near, far = ends.connect()
    near.sendall(b"before")
    assert receive(far, 6) == b"before"

    ends.relay.vanish()
    near.sendall(b"after")
    far.sendall(b"after")

    for end in (near, far):
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
        assert unacknowledged(end) == 5


def unacknowledged(end: socket.socket) -> int:
    """Return how many bytes were sent of which the kernel has not heard since."""
    (nbytes,) = struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))
    return int(nbytes)
