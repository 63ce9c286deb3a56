"""Frames arrive whole, in order and with what belongs to them, or not at all."""

import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire.body import MAX_MESSAGE_NBYTES
from pswire.errors import InvalidRequestError
from pswire.samehost import Frame, FrameSocket, Kind

HEADER_NBYTES = 24
NUMBERS = st.one_of(st.sampled_from([0, 1, 2**32 - 1]), st.integers(0, 2**32 - 1))
FRAMES = st.builds(
    Frame,
    kind=NUMBERS,
    message=st.one_of(st.binary(max_size=40), st.just(bytes(range(256)) * 10)),
    upload=NUMBERS,
    download=NUMBERS,
    body_nbytes=st.one_of(st.just(2**64 - 1), st.integers(0, 2**64 - 1)),
)
FRAME = Frame(Kind.PUSH, b"message", upload=1, download=2, body_nbytes=2**40)


class Trickle(socket.socket):
    """A socket that gives a few bytes at a time, as any socket may.

    Attributes:
        sizes: How many it gives at most each time, over and over.
    """

    def __init__(self, connection: socket.socket, sizes: Sequence[int]) -> None:
        super().__init__(fileno=connection.detach())
        self._sizes = sizes
        self._reads = 0

    def _most(self, nbytes: int) -> int:
        self._reads += 1
        return min(nbytes, self._sizes[self._reads % len(self._sizes)])

    def recv(self, nbytes: int, *rest: Any) -> bytes:
        return super().recv(self._most(nbytes), *rest)

    def recvmsg(self, nbytes: int, *rest: Any) -> Any:
        return super().recvmsg(self._most(nbytes), *rest)


@contextmanager
def sockets(sizes: Sequence[int] = ()) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open a sender and a receiver, which gives its bytes a few at a time."""
    sender, receiver = socket.socketpair()
    if sizes:
        receiver = Trickle(receiver, sizes)
    with sender, receiver:
        sender.settimeout(20)
        receiver.settimeout(20)
        yield sender, receiver


def wire(*frames: Frame) -> bytes:
    """Return the bytes that frames without descriptors travel as."""
    with sockets() as (sender, receiver):
        for frame in frames:
            FrameSocket(sender).send(frame)
        sender.close()
        parts = iter(lambda: receiver.recv(2**16), b"")
        return b"".join(parts)


def arrived(frame: Frame) -> Frame:
    """Return what a frame without descriptors is like on the other side."""
    return replace(frame, descriptors=[])


@contextmanager
def marked(text: bytes) -> Iterator[int]:
    """Open a descriptor that holds a text."""
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, text)
        yield descriptor
    finally:
        os.close(descriptor)


def texts(frame: Frame | None) -> list[bytes]:
    """Return what a frame's descriptors hold, and close them."""
    assert frame is not None
    found = []
    for descriptor in frame.descriptors:
        found.append(os.pread(descriptor, 100, 0))
        os.close(descriptor)
    return found


def test_a_frame_s_bytes_are_the_format_s() -> None:
    """The two ends may be of two versions, so the numbers' places never change."""
    frame = Frame(Kind.EXCHANGE, b"ab", upload=3, download=4, body_nbytes=2**40)

    assert wire(frame) == struct.pack("<IIIIQ", 2, 7, 3, 4, 2**40) + b"ab"


@settings(deadline=None, derandomize=True)
@given(
    frames=st.lists(FRAMES, min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=5),
)
def test_frames_arrive_in_whatever_pieces_they_come(
    frames: list[Frame], sizes: list[int]
) -> None:
    """Any numbers that fit, any bytes, and in the order in which they were sent."""
    with sockets(sizes) as (sender, receiver):
        sent, received = FrameSocket(sender), FrameSocket(receiver)
        for frame in frames:
            sent.send(frame)
        sender.close()

        got = [received.receive() for _ in range(len(frames) + 1)]

    assert got == [*map(arrived, frames), None]


@pytest.mark.parametrize("size", [1, 23, 24, 25, 31, 32, 2**16])
def test_every_split_gives_the_same_frames(size: int) -> None:
    """Within the numbers, at the message's start or end, or into the next frame."""
    frames = [FRAME, Frame(Kind.STATUS), FRAME]
    with sockets([size]) as (sender, receiver):
        sender.sendall(wire(*frames))
        received = FrameSocket(receiver)

        got = [received.receive() for _ in frames]

    assert got == list(map(arrived, frames))


def test_a_large_message_arrives_whole() -> None:
    """Larger than any socket holds: it is read while it is sent."""
    frame = replace(FRAME, message=bytes(range(256)) * 2**13)
    with sockets() as (sender, receiver), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(FrameSocket(sender).send, frame)

        got = FrameSocket(receiver).receive()

        sending.result(20)
    assert got == arrived(frame)


def test_both_ends_send_and_receive() -> None:
    """What one has read of the next frame is not lost while it answers."""
    with sockets() as (one, other):
        here, there = FrameSocket(one), FrameSocket(other)
        here.send(FRAME)
        here.send(Frame(Kind.STATUS, b"second"))

        first = there.receive()
        there.send(Frame(Kind.ANSWER, b"answer"))
        second = there.receive()

        assert (first, second) == (
            arrived(FRAME),
            Frame(Kind.STATUS, b"second", descriptors=[]),
        )
        assert here.receive() == Frame(Kind.ANSWER, b"answer", descriptors=[])


@pytest.mark.parametrize("size", [1, len(wire(FRAME)), 2**16])
def test_a_descriptor_arrives_with_its_frame(size: int) -> None:
    """Each with its own, though all lay in the socket at once; the rest get none."""
    with (
        sockets([size]) as (sender, receiver),
        marked(b"one") as one,
        marked(b"two") as two,
    ):
        sent, received = FrameSocket(sender), FrameSocket(receiver)
        sent.send(replace(FRAME, descriptors=[one]))
        sent.send(replace(FRAME, descriptors=[two]))
        sent.send(FRAME)

        got = [texts(received.receive()) for _ in range(3)]

    assert got == [[b"one"], [b"two"], []]


def test_a_descriptor_arrives_with_a_large_message() -> None:
    """Though the socket takes only some of it with the descriptor."""
    frame = replace(FRAME, message=bytes(range(256)) * 2**13)
    with (
        marked(b"one") as one,
        sockets() as (sender, receiver),
        ThreadPoolExecutor(1) as pool,
    ):
        sending = pool.submit(
            FrameSocket(sender).send, replace(frame, descriptors=[one])
        )

        got = FrameSocket(receiver).receive()

        sending.result(20)
    assert got is not None
    assert got.message == frame.message
    assert texts(got) == [b"one"]


def test_the_sender_keeps_its_descriptor() -> None:
    """The receiver's is another, and lives on when the sender's is closed."""
    with sockets() as (sender, receiver):
        with marked(b"one") as one:
            FrameSocket(sender).send(replace(FRAME, descriptors=(one,)))
            assert os.pread(one, 100, 0) == b"one"

        assert texts(FrameSocket(receiver).receive()) == [b"one"]


@pytest.mark.parametrize("end", range(len(wire(FRAME))))
def test_a_frame_that_breaks_off_is_none(end: int) -> None:
    """Wherever it does, and however often one asks."""
    whole = wire(FRAME)
    with sockets() as (sender, receiver):
        sender.sendall(whole + whole[:end])
        sender.close()
        received = FrameSocket(receiver)

        got = [received.receive() for _ in range(3)]

    assert got == [arrived(FRAME), None, None]


@pytest.mark.parametrize("nbytes", [MAX_MESSAGE_NBYTES + 1, 2**32 - 1])
def test_a_message_that_is_too_large_is_refused(nbytes: int) -> None:
    """By its size alone: nothing waits for the rest."""
    text = f"frame: expected at most {MAX_MESSAGE_NBYTES} bytes, got {nbytes}"
    with sockets() as (sender, receiver):
        sender.sendall(struct.pack("<IIIIQ", nbytes, Kind.PUSH, 0, 0, 0))

        with pytest.raises(InvalidRequestError, match=f"^{re.escape(text)}$"):
            FrameSocket(receiver).receive()


def test_the_largest_message_is_not_refused() -> None:
    """It has broken off here, which is another matter."""
    with sockets() as (sender, receiver):
        sender.sendall(struct.pack("<IIIIQ", MAX_MESSAGE_NBYTES, Kind.PUSH, 0, 0, 0))
        sender.close()

        assert FrameSocket(receiver).receive() is None


def test_sending_to_one_who_is_gone_fails() -> None:
    """With a descriptor or without."""
    with sockets() as (sender, receiver), marked(b"one") as one:
        receiver.close()

        with pytest.raises(OSError, match="Broken pipe"):
            FrameSocket(sender).send(FRAME)
        with pytest.raises(OSError, match="Broken pipe"):
            FrameSocket(sender).send(replace(FRAME, descriptors=[one]))


@pytest.mark.parametrize("size", [1, 20, 24, 30, 40, 2**16])
def test_a_descriptor_is_never_another_frame_s(size: int) -> None:
    """Not of the one before it, though one read may give the end of that, too."""
    with (
        sockets([size]) as (sender, receiver),
        marked(b"one") as one,
        marked(b"two") as two,
    ):
        sent, received = FrameSocket(sender), FrameSocket(receiver)
        sent.send(Frame(Kind.DETACH, upload=1))
        sent.send(Frame(Kind.ATTACH, upload=2, descriptors=[one]))
        sent.send(Frame(Kind.ATTACH, upload=3, descriptors=[two]))
        sent.send(FRAME)

        got = [texts(received.receive()) for _ in range(4)]

    assert got == [[], [b"one"], [b"two"], []]
