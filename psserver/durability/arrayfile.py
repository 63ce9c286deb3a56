"""A file of named arrays, as the safetensors format has it.

First the size of the header, in 8 bytes; the header, in JSON, says where each array's
bytes are, counted from its own end.

References:
    https://huggingface.co/docs/safetensors: the format. Its library writes by path,
    without a sync.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError
from pswire.body import AnyArrays, Buffer, InPieces
from pswire.layout import ArraySpec

Digests = Mapping[ArraySpec, str]
"""The sha256 of every array's bytes, by what the array is."""

_PIECE_NBYTES = 2**20  # So little is hashed and written that others wait for nothing.
_RESERVED = "__metadata__"
_CODES: dict[np.dtype[Any], str] = {
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
    np.dtype(np.int8): "I8",
    np.dtype(np.int16): "I16",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(np.uint8): "U8",
    np.dtype(np.uint16): "U16",
    np.dtype(np.uint32): "U32",
    np.dtype(np.uint64): "U64",
    np.dtype(np.bool_): "BOOL",
}
DTYPES = {dtype.name: dtype for dtype in _CODES}
"""What an array can be of, by numpy's names."""


def write(disk: Disk, path: Path, arrays: AnyArrays) -> Digests:
    """Write a new file, which outlasts a loss of power when this returns.

    No more than a piece of it is in memory, but for arrays that lie there scattered.

    Returns:
        What `read` needs, in the order of `arrays`.

    Raises:
        OSError: The disk does not take it; there may be a part of it.
        ValueError: The file cannot have an array of this name or dtype.
    """
    specs = [ArraySpec(n, array.dtype, array.shape) for n, array in arrays.items()]
    hashes = {spec: sha256() for spec in specs}
    header = _header(specs)
    with closing(disk.create(path)) as file:
        file.write([header])
        for pieces in _batches(_hashed(arrays, hashes)):
            file.write(pieces)
        file.sync()
    return {spec: done.hexdigest() for spec, done in hashes.items()}


def read(
    disk: Disk, path: Path, digests: Digests
) -> Iterator[tuple[ArraySpec, int, memoryview]]:
    """Open a file, once its size and its header have been checked.

    Args:
        disk: Where the file is.
        path: Its name.
        digests: What `write` has returned.

    Returns:
        Every array's bytes in pieces, each with where in the array it begins. All are
        as they were written if the end is reached; reading raises the same errors.

    Raises:
        OSError: The disk does not give it.
        DataDirectoryError: A byte of it is not as it was written.
    """
    header = _header(digests)
    expected = len(header) + sum(spec.nbytes for spec in digests)
    if (nbytes := disk.nbytes(path)) != expected:
        raise DataDirectoryError(f"{path}: expected {expected} bytes, got {nbytes}")
    if disk.read(path, 0, len(header)) != header:
        raise DataDirectoryError(
            f"{path}: expected the header of its manifest's arrays, got another"
        )
    return _pieces(_Reader(disk, path, len(header)), digests)


def bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """View an array as its bytes; one that lies scattered is copied."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class _Reader:
    """Reads a file from some place on, in pieces of its own."""

    def __init__(self, disk: Disk, path: Path, start: int) -> None:
        self.path = path
        self._disk = disk
        self._next = start
        self._rest = memoryview(b"")

    def read(self, most: int) -> memoryview:
        """Return the next bytes: one or more."""
        if not self._rest:
            data = self._disk.read(self.path, self._next, _PIECE_NBYTES)
            if not data:
                raise DataDirectoryError(
                    f"{self.path}: expected more bytes, got its end at {self._next}"
                )
            self._next += len(data)
            self._rest = memoryview(data)
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken


def _pieces(
    file: _Reader, digests: Digests
) -> Iterator[tuple[ArraySpec, int, memoryview]]:
    for spec in _in_order(digests):
        hashed, at = sha256(), 0
        while at < spec.nbytes:
            piece = file.read(spec.nbytes - at)
            hashed.update(piece)
            yield spec, at, piece
            at += len(piece)
        if hashed.hexdigest() != digests[spec]:
            raise DataDirectoryError(
                f"{file.path}: {spec.name}: expected bytes of its sha256, got others"
            )


def _in_order(specs: Iterable[ArraySpec]) -> list[ArraySpec]:
    """Put large elements first, so that each lies where its type can be read."""
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def _header(specs: Iterable[ArraySpec]) -> bytes:
    table, end = {}, 0
    for spec in _in_order(specs):
        start, end = end, end + spec.nbytes
        table[spec.name] = {
            "dtype": _code(spec),
            "shape": spec.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _code(spec: ArraySpec) -> str:
    if spec.dtype not in _CODES:
        known = ", ".join(DTYPES)
        raise ValueError(f"{spec.name}: expected one of {known}, got {spec.dtype}")
    if spec.name == _RESERVED:
        raise ValueError(f"{_RESERVED}: expected another name, safetensors keeps this")
    return _CODES[spec.dtype]


def _hashed(arrays: AnyArrays, hashes: Mapping[ArraySpec, Any]) -> Iterator[Buffer]:
    for spec in _in_order(hashes):
        for piece in _pieces_of(arrays[spec.name]):
            hashes[spec].update(piece)
            yield piece


def _pieces_of(array: npt.NDArray[Any] | InPieces) -> Iterator[Buffer]:
    if isinstance(array, InPieces):
        yield from array.pieces()
        return
    data = bytes_of(array).data
    for start in range(0, len(data), _PIECE_NBYTES):
        yield data[start : start + _PIECE_NBYTES]


def _batches(pieces: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    """Put small pieces together: a write costs more than they do."""
    batch, nbytes = list[Buffer](), 0
    for piece in pieces:
        batch.append(piece)
        nbytes += len(piece)
        if nbytes >= _PIECE_NBYTES:
            yield batch
            batch, nbytes = [], 0
    yield batch
