"""The arrays' bytes: cut into pieces to send, put together again on arrival."""

import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pswire.errors import InvalidRequestError, VariableMismatchError
from pswire.layout import ALIGNMENT, ArraySpec, Layout
from pswire.memory import aligned, fill, is_aligned, zeros

if sys.byteorder != "little":
    raise ImportError("pswire: expected a little-endian machine, as the wire is")

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by name."""


class InPieces(ABC):
    """A large array that is read once, from its first byte to its last.

    Attributes:
        shape: As of any array.
        dtype: Likewise.
        nbytes: Likewise, in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int

    @abstractmethod
    def pieces(self) -> Iterator[memoryview]:
        """Yield its bytes."""


AnyArrays = Mapping[str, npt.NDArray[Any] | InPieces]
"""Arrays by name, some of which may be in pieces."""

Bytes = npt.NDArray[np.uint8]

Buffer = bytes | memoryview

CHUNK_NBYTES = 2**20
"""The largest piece of a stream; larger ones were slower, smaller ones much."""

MAX_UNARY_NBYTES = 4_000_000
"""The largest body of one message: beyond, a stream is faster, and a standard
client's limit of 4 MiB a message is near."""

MAX_MESSAGE_NBYTES = 64 * 2**20
"""gRPC's own limit, to be set on both sides: only a huge layout comes near it."""


class Body(Arrays):
    """Arrays by name, kept as the bytes that travel.

    An array is made when it is asked for, as a view: a model of a thousand arrays is
    received, updated and sent without touching any one of them.
    """

    def __init__(self, layout: Layout, runs: Sequence[tuple[int, Bytes]]) -> None:
        """Take over memory.

        Args:
            layout: Of the whole body.
            runs: The memory, as (offset in the body, bytes), in order. Every array
                lies within one run, at an offset that suits its type.
        """
        self.layout = layout
        self.runs = tuple((start, memory) for start, memory in runs if len(memory))
        self._starts = [start for start, _ in self.runs]

    @classmethod
    def zeros(cls, layout: Layout) -> Self:
        """Make a body that can be written, all zero."""
        return cls(layout, [(0, zeros(layout.nbytes))])

    @classmethod
    def unwritten(cls, layout: Layout) -> Self:
        """Make a body to be written: only what lies between its arrays is zero."""
        memory = aligned(layout.nbytes)
        memory[layout.gaps] = 0
        return cls(layout, [(0, memory)])

    @classmethod
    def gather(cls, layout: Layout, arrays: Arrays) -> Self:
        """Lay arrays out in one run; a body that is so already is not copied.

        Args:
            layout: Which arrays, in which order.
            arrays: At least those, with the same shapes and dtypes.
        """
        if isinstance(arrays, cls) and arrays.layout == layout and len(arrays.runs) < 2:
            return arrays
        body = cls.unwritten(layout)
        for name in layout.places:
            np.copyto(body[name], arrays[name])
        return body

    def between(self, start: int, stop: int) -> Bytes:
        """Return some bytes of one run.

        Args:
            start: Where they begin in the body, in bytes.
            stop: Where they end.
        """
        offset, memory = self.runs[bisect_right(self._starts, start) - 1]
        return memory[start - offset : stop - offset]

    def part(self, layout: Layout) -> "Body":
        """Return the first arrays, whose layout this is, without a copy."""
        if layout == self.layout:
            return self
        nbytes = layout.nbytes
        runs = [(s, run[: nbytes - s]) for s, run in self.runs if s < nbytes]
        return Body(layout, runs)

    def freeze(self) -> Self:
        """Let nobody write through this body's arrays any more."""
        for _, memory in self.runs:
            memory.flags.writeable = False
        return self

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        spec, start = self.layout.places[name]
        if not spec.nbytes:
            return np.empty(spec.shape, spec.dtype)
        stored = self.between(start, start + spec.nbytes)
        return stored.view(spec.dtype).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.places)

    def __len__(self) -> int:
        return len(self.layout.places)


def cut(
    layout: Layout, arrays: AnyArrays, nbytes: int = CHUNK_NBYTES
) -> Iterator[tuple[int, memoryview]]:
    """Yield the body's pieces as (offset, bytes), each full but the last.

    A piece that lies in one run of memory is not copied.

    Args:
        layout: Which arrays, in which order.
        arrays: At least the layout's arrays, with its shapes and dtypes.
        nbytes: The size of a piece.
    """
    offset, room, parts = 0, nbytes, list[memoryview]()
    for run in _runs(layout, arrays):
        while len(run) >= room:
            parts.append(run[:room])
            yield offset, _one(parts)
            run = run[room:]
            offset, room, parts = offset + nbytes, nbytes, []
        if run:
            parts.append(run)
            room -= len(run)
    if room < nbytes:
        yield offset, _one(parts)


def join(layout: Layout, arrays: AnyArrays) -> memoryview:
    """Return the whole body in one piece; one that lies in one run is not copied."""
    if isinstance(arrays, Body) and arrays.layout == layout and len(arrays.runs) == 1:
        return arrays.runs[0][1].data
    pieces = (data for _, data in cut(layout, arrays, layout.nbytes))
    return next(pieces, memoryview(b""))


def copy(layout: Layout, arrays: AnyArrays, memory: Bytes) -> None:
    """Write the whole body into memory of at least its size."""
    end = 0
    for run in _runs(layout, arrays):
        fill(memory[end : end + len(run)], np.frombuffer(run, np.uint8))
        end += len(run)


def _one(parts: list[memoryview]) -> memoryview:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _runs(layout: Layout, arrays: AnyArrays) -> Iterator[memoryview]:
    if isinstance(arrays, Body) and arrays.layout == layout:
        runs = ((start, memory.data) for start, memory in arrays.runs)
    else:
        runs = (
            run
            for spec, start in layout.places.values()
            for run in _runs_of(arrays[spec.name], spec, start)
        )
    gap, end = memoryview(bytes(ALIGNMENT)), 0
    for start, run in runs:
        if run:
            yield gap[: start - end]
            yield run
            end = start + len(run)


def _runs_of(
    array: npt.NDArray[Any] | InPieces, spec: ArraySpec, start: int
) -> Iterator[tuple[int, memoryview]]:
    if not isinstance(array, InPieces):
        yield start, _bytes_of(array, spec)
        return
    for piece in array.pieces():
        yield start, piece
        start += len(piece)


def _bytes_of(array: npt.NDArray[Any], spec: ArraySpec) -> memoryview:
    if array.dtype != spec.dtype:
        # What becomes infinite is for the receiver to refuse, by name.
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(spec.dtype, order="C")
    # bfloat16 has no buffer format, so the bytes are viewed as bytes by numpy first.
    stored = np.ascontiguousarray(array)
    return stored.reshape(-1).view(np.uint8).data


class Assembly:
    """Puts a body's pieces together, in order, checking each.

    Pieces are copied once, into memory that is taken when the first one has come; a
    body that arrives in one piece is not, if it lies where JAX can use it.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._received = 0
        self._body: Bytes = np.empty(0, np.uint8)

    def add(self, offset: int, data: Buffer) -> None:
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
        if len(data) == self._layout.nbytes and is_aligned(piece):
            self._body = piece
        elif len(data):
            if not self._received:
                self._body = aligned(self._layout.nbytes)
            fill(self._body[offset:end], piece)
        self._received = end

    def finish(self) -> Body:
        """Return the arrays, not to be written, in the layout's order.

        Raises:
            VariableMismatchError: The body is short, the bytes between two arrays are
                not zero, or a bool is neither 0 nor 1.
        """
        if self._received != self._layout.nbytes:
            raise self._size_error(self._received)
        body = Body(self._layout, [(0, self._body)]).freeze()
        gaps = self._layout.gaps
        if gaps.size and self._body[gaps].any():
            raise VariableMismatchError(
                "body: expected zeros between the arrays, got something else"
            )
        for name in self._layout.bools:
            _require_bools(name, body[name])
        return body

    def _size_error(self, got: int) -> VariableMismatchError:
        return VariableMismatchError(
            f"body: expected {self._layout.nbytes} bytes, got {got}"
        )


def _require_bools(name: str, array: npt.NDArray[Any]) -> None:
    if (largest := array.view(np.uint8).max(initial=0)) > 1:
        raise VariableMismatchError(f"{name}: expected bools of 0 or 1, got {largest}")
