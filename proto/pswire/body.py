"""The arrays' bytes: cut into pieces to send, put together again on arrival."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pswire.errors import InvalidRequestError, VariableMismatchError
from pswire.layout import ALIGNMENT, ArraySpec, Layout

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by name."""

CHUNK_NBYTES = 2**20
"""The largest piece of a stream; larger ones were slower, smaller ones much."""

MAX_UNARY_NBYTES = 4_000_000
"""The largest body of one message: beyond, a stream is faster, and a standard
client's limit of 4 MiB a message is near."""

MAX_MESSAGE_NBYTES = 64 * 2**20
"""gRPC's own limit, to be set on both sides: only a huge layout comes near it."""


def cut(
    layout: Layout, arrays: Arrays, nbytes: int = CHUNK_NBYTES
) -> Iterator[tuple[int, bytes]]:
    """Yield the body's pieces as (offset, bytes), each full but the last.

    Args:
        layout: Which arrays, in which order.
        arrays: At least the layout's arrays, with its shapes and dtypes.
        nbytes: The size of a piece.
    """
    offset, room, parts = 0, nbytes, list[memoryview]()
    for run in _runs(layout, arrays):
        while len(run) >= room:
            parts.append(run[:room])
            yield offset, b"".join(parts)
            run = run[room:]
            offset, room, parts = offset + nbytes, nbytes, []
        parts.append(run)
        room -= len(run)
    if room < nbytes:
        yield offset, b"".join(parts)


def join(layout: Layout, arrays: Arrays) -> bytes:
    """Return the whole body in one piece."""
    return b"".join(_runs(layout, arrays))


def _runs(layout: Layout, arrays: Arrays) -> Iterator[memoryview]:
    gap, end = memoryview(bytes(ALIGNMENT)), 0
    for spec, offset in zip(layout.arrays, layout.offsets, strict=True):
        if spec.nbytes:
            yield gap[: offset - end]
            yield _bytes_of(arrays[spec.name], spec)
            end = offset + spec.nbytes


def _bytes_of(array: npt.NDArray[Any], spec: ArraySpec) -> memoryview:
    # bfloat16 has no buffer format, so the bytes are viewed as bytes by numpy first.
    stored = np.ascontiguousarray(array, dtype=spec.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8).data


class Assembly:
    """Puts a body's pieces together, in order, checking each.

    A body that arrives in one piece is not copied; pieces are copied once, into
    memory that is taken when the first one has come.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._received = 0
        self._body: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def add(self, offset: int, data: bytes) -> None:
        """Take the next piece.

        Raises:
            InvalidRequestError: It is not the next one.
            VariableMismatchError: It reaches past the body's end.
        """
        if offset != self._received:
            raise InvalidRequestError(
                f"offset: expected {self._received} bytes, got {offset}"
            )
        end = offset + len(data)
        if end > self._layout.nbytes:
            raise self._size_error(end)
        piece = np.frombuffer(data, np.uint8)
        if len(data) == self._layout.nbytes:
            self._body = piece
        elif data:
            if not self._received:
                self._body = _aligned(self._layout.nbytes)
            # Unlike a slice assignment of a memoryview, this lets go of the GIL.
            np.copyto(self._body[offset:end], piece)
        self._received = end

    def finish(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays: read-only views of the body, in the layout's order.

        Raises:
            VariableMismatchError: The body is short, or a bool is neither 0 nor 1.
        """
        if self._received != self._layout.nbytes:
            raise self._size_error(self._received)
        self._body.flags.writeable = False
        return {
            spec.name: self._view(spec, offset)
            for spec, offset in zip(
                self._layout.arrays, self._layout.offsets, strict=True
            )
        }

    def _view(self, spec: ArraySpec, offset: int) -> npt.NDArray[Any]:
        stored = self._body[offset : offset + spec.nbytes]
        if spec.dtype == np.bool_ and stored.size and stored.max() > 1:
            raise VariableMismatchError(
                f"{spec.name}: expected bools of 0 or 1, got {stored.max()}"
            )
        array = stored.view(spec.dtype.newbyteorder("<")).reshape(spec.shape)
        return array.astype(spec.dtype, copy=False)

    def _size_error(self, got: int) -> VariableMismatchError:
        return VariableMismatchError(
            f"body: expected {self._layout.nbytes} bytes, got {got}"
        )


def _aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Take memory that starts where JAX can use it without a copy."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]
