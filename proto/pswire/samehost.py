"""The contract's messages over a unix socket, for workers on the server's host.

A gRPC call costs ten times what it takes two processes of one host to exchange a few
bytes, and copies every body six times. Here a worker and the server hold one socket.
What travels over it are frames:

    offset  size  field
    0       4     nbytes: the size of the message, in bytes
    4       4     kind: see `Kind`
    8       4     upload: the worker's memory that holds the request's body; 0: none
    12      4     download: the worker's memory for the reply's body; 0: none
    16      8     body_nbytes: the size of the body in `upload`, in bytes
    24            the message: of a call, as in the contract

All numbers are unsigned and little-endian. The server speaks first: its incarnation, in
a frame of kind `ANSWER`. Then each request gets one answer: the reply, or an `ERROR`
with a google.rpc.Status. `ATTACH` and `DETACH` get none.

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


@dataclass(frozen=True, slots=True)
class Frame:
    """One message and what goes with it.

    Attributes:
        kind: A `Kind`, or a number that the sender takes for one.
        message: Its bytes.
        upload: The number of the memory with the request's body; 0: none.
        download: The number of the memory for the reply's body; 0: none.
        body_nbytes: The size of the body in `upload`, in bytes.
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
        self._socket = connection

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

    def receive(self) -> Frame | None:
        """Wait for a frame; None: the other end has closed, or is gone.

        Raises:
            InvalidRequestError: Its message is larger than any.
            OSError: Of the socket, a timeout too.
        """
        descriptors: list[int] = []
        frame = bytearray()
        try:
            # Never read past the end: what comes next may have descriptors of its own.
            while missing := _size(frame) - len(frame):
                data, attached, _, _ = self._socket.recvmsg(
                    missing, _ANCILLARY_NBYTES, socket.MSG_CMSG_CLOEXEC
                )
                for _, _, descriptor in attached:
                    descriptors += struct.unpack("i", descriptor)
                if not data:
                    _close(descriptors)
                    return None
                frame += data
        except BaseException:
            _close(descriptors)
            raise
        _, kind, upload, download, nbytes = _FRAME.unpack_from(frame)
        message = bytes(memoryview(frame)[_FRAME.size :])
        return Frame(kind, message, upload, download, nbytes, descriptors)


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


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
