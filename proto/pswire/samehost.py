"""The contract's messages over a unix socket, for workers on the server's host.

A gRPC call costs ten times what it takes two processes of one host to exchange a few
bytes, and copies every body six times. Here a worker and the server hold one socket.
What travels over it are frames:

    offset  size  field
    0       4     nbytes: the size of the message, in bytes
    4       4     kind: see `Kind`
    8       4     upload: the worker's memory that holds the request's body; 0: none
    12      4     download: the worker's memory for the reply's body; 0: none
    16      8     body_nbytes: the size of the body in that memory, in bytes
    24            the message: of a call, as in the contract

All numbers are unsigned and little-endian. The server speaks first: its incarnation, in
a frame of kind `ANSWER`. Then each request gets one answer: the reply, or an `ERROR`
with a google.rpc.Status. `ATTACH`, `DETACH` and `AUTHORIZE` get none; that one brings
what a call over gRPC has in its metadata under "authorization".

A body of up to `MAX_INLINE_NBYTES` travels in its message's `data`. A larger one lies
in memory that the worker has made and has sent the descriptor of, with an `ATTACH` that
gives it a number in `upload`: the message's `data` is then empty, and the body begins
where the memory begins. The answer says in `download` whether it has used that memory.
The server writes no worker's memory outside a call, keeps nothing in it beyond one, and
lets go of it when the socket closes, whatever has become of the worker.

The socket lies where only one user can reach it, and each end belongs to that user. A
worker that changes its memory while the server reads it spoils its own push, and gets
past the bound on the norm: whoever does that could as well read the server's memory.
"""

import enum
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pswire.body import MAX_MESSAGE_NBYTES
from pswire.errors import InvalidRequestError

MAX_INLINE_NBYTES = 32 * 2**10
"""The largest body in a message: up to here a copy is cheaper than a second memory."""

_FRAME = struct.Struct("<IIIIQ")
_ANCILLARY_NBYTES = socket.CMSG_LEN(4)  # Of one descriptor.


class Kind(enum.IntEnum):
    """What a frame is."""

    ANSWER = 0
    ERROR = 1
    ATTACH = 2
    DETACH = 3
    INITIALIZE = 4
    PULL = 5
    PUSH = 6
    EXCHANGE = 7
    STATUS = 8
    AUTHORIZE = 9


@dataclass(frozen=True, slots=True)
class Frame:
    """One message and what goes with it.

    Attributes:
        kind: A `Kind`, or a number that the sender takes for one.
        message: Its bytes.
        upload: The number of the memory with the request's body; 0: none.
        download: The number of the memory for the reply's body; 0: none.
        body_nbytes: The size of the body in `upload`, in bytes; of an answer's, in
            `download`.
        descriptors: That came with it; the receiver's to close.
    """

    kind: int
    message: bytes = b""
    upload: int = 0
    download: int = 0
    body_nbytes: int = 0
    descriptors: Sequence[int] = ()


class FrameSocket:
    """Sends and receives frames, one at a time; a failure leaves it of no use."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a socket."""
        self._socket = connection
        self._frame = bytearray()  # As much as has come of the next one,
        self._descriptors: list[int] = []  # and with it.

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._forget()

    def send(self, frame: Frame) -> None:
        """Send a frame.

        Raises:
            OSError: The other end is gone.
        """
        fields = (frame.kind, frame.upload, frame.download, frame.body_nbytes)
        data = _FRAME.pack(len(frame.message), *fields) + frame.message
        if frame.descriptors:
            sent = socket.send_fds(self._socket, [data], list(frame.descriptors))
            data = data[sent:]
        self._socket.sendall(data)

    def receive(self, *, wait: bool = True) -> Frame | None:
        """Return the next frame; None: the other end has closed, or is gone.

        Args:
            wait: Whether to wait for all of it.

        Raises:
            BlockingIOError: It has not all come; the next call goes on with it.
            InvalidRequestError: Its message is larger than any.
            OSError: Of the socket, a timeout too.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            # Never read past the end: what comes next may have descriptors of its own.
            while missing := _size(self._frame) - len(self._frame):
                data, attached, _, _ = self._socket.recvmsg(
                    missing, _ANCILLARY_NBYTES, flags
                )
                for _, _, descriptor in attached:
                    self._descriptors += struct.unpack("i", descriptor)
                if not data:
                    self._forget()
                    return None
                self._frame += data
        except BlockingIOError:
            raise
        except BaseException:
            self._forget()
            raise
        frame, self._frame = self._frame, bytearray()
        descriptors, self._descriptors = self._descriptors, []
        _, kind, upload, download, nbytes = _FRAME.unpack_from(frame)
        message = bytes(memoryview(frame)[_FRAME.size :])
        return Frame(kind, message, upload, download, nbytes, descriptors)

    def _forget(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def _size(frame: bytearray) -> int:
    """Return how many bytes a frame will have, as far as its beginning tells."""
    if len(frame) < _FRAME.size:
        return _FRAME.size
    nbytes: int = _FRAME.unpack_from(frame)[0]
    if nbytes > MAX_MESSAGE_NBYTES:
        raise InvalidRequestError(
            f"frame: expected at most {MAX_MESSAGE_NBYTES} bytes, got {nbytes}"
        )
    return _FRAME.size + nbytes
