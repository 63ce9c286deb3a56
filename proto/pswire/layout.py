"""What a run of bytes holds: the arrays' names, types, shapes and places."""

import unicodedata
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from math import prod
from typing import Any, Protocol, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import VariableMismatchError

ALIGNMENT = 64
"""Every array starts at a multiple of so many bytes."""

MAX_NAME_NBYTES = 1024
"""Of a variable's name."""
MAX_KEPT_NAME_NBYTES = 8192
"""Of the name of an array of an inspection: it may quote a variable's, behind others,
and quoted, what cannot be printed takes up to two and a half times as many bytes."""

_MAX_NBYTES = 2**62
_MAX_RANK = 64  # numpy's own

_FLOATS: dict[pb.DType, np.dtype[Any]] = {
    pb.FLOAT16: np.dtype(np.float16),
    pb.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    pb.FLOAT32: np.dtype(np.float32),
    pb.FLOAT64: np.dtype(np.float64),
}
_DTYPES: dict[pb.DType, np.dtype[Any]] = _FLOATS | {
    pb.INT8: np.dtype(np.int8),
    pb.INT16: np.dtype(np.int16),
    pb.INT32: np.dtype(np.int32),
    pb.INT64: np.dtype(np.int64),
    pb.UINT8: np.dtype(np.uint8),
    pb.UINT16: np.dtype(np.uint16),
    pb.UINT32: np.dtype(np.uint32),
    pb.UINT64: np.dtype(np.uint64),
    pb.BOOL: np.dtype(np.bool_),
}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
_TRAINABLE = frozenset(_FLOATS.values())


class HasShape(Protocol):
    """Anything with an array's shape and dtype: numpy's, JAX's, a struct of both."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array's name, dtype and shape.

    Attributes:
        name: The name.
        dtype: Of its elements.
        shape: In elements, outermost first.
        by_rows: Whether it is a table: pulled and pushed by rows, along its first axis.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_rows: bool = False

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def trainable(self) -> bool:
        """Whether the variable has a gradient: it is of a floating-point type."""
        return self.dtype in _TRAINABLE

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype.name}" + " by rows" * self.by_rows


@dataclass(frozen=True)
class Layout:
    """Named arrays, in the order in which their bytes travel.

    Attributes:
        arrays: One spec an array; no two have the same name.
    """

    arrays: tuple[ArraySpec, ...]

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, HasShape],
        *,
        max_name_nbytes: int = MAX_NAME_NBYTES,
    ) -> Self:
        """Lay out arrays in the mapping's order.

        Args:
            arrays: By their names.
            max_name_nbytes: How long a name may be, in bytes of UTF-8.

        Raises:
            VariableMismatchError: A name cannot travel, or a dtype is none of float16,
                bfloat16, float32, float64, (u)int8 to (u)int64 and bool.
        """
        specs = (_spec(name, array) for name, array in arrays.items())
        return cls(tuple(_checked(spec, max_name_nbytes) for spec in specs))

    @classmethod
    def from_proto(
        cls, message: pb.Layout, *, max_name_nbytes: int = MAX_NAME_NBYTES
    ) -> Self:
        """Read a layout from anyone at all: it is checked here.

        Args:
            message: It.
            max_name_nbytes: See `of`.

        Raises:
            VariableMismatchError: A name is empty, too long or used twice, a dtype
                unknown, a dimension negative, or the whole over 2^62 bytes.
        """
        specs = map(_read_spec, message.arrays)
        arrays = tuple(_checked(spec, max_name_nbytes) for spec in specs)
        names: set[str] = set()
        for spec in arrays:
            # Names that look the same would be told apart by nobody who reads them.
            normal = unicodedata.normalize("NFC", spec.name)
            if normal in names:
                raise VariableMismatchError(f"{spec.name}: expected once, got twice")
            names.add(normal)
        layout = cls(arrays)
        if sum(spec.nbytes for spec in arrays) > _MAX_NBYTES:
            raise VariableMismatchError(
                f"layout: expected at most {_MAX_NBYTES} bytes, got {layout.nbytes}"
            )
        return layout

    def to_proto(self) -> pb.Layout:
        return pb.Layout(
            arrays=[
                pb.ArraySpec(
                    name=a.name,
                    dtype=_NUMBERS[a.dtype],
                    shape=a.shape,
                    by_rows=a.by_rows,
                )
                for a in self.arrays
            ]
        )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each array starts in the body, in bytes."""
        offsets, end = [], 0
        for spec in self.arrays:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            offsets.append(start)
            # An empty array moves nothing: the body ends with the last real byte.
            end = start + spec.nbytes if spec.nbytes else end
        return tuple(offsets)

    @cached_property
    def nbytes(self) -> int:
        """The body's size, gaps included."""
        ends = (
            offset + spec.nbytes
            for offset, spec in zip(self.offsets, self.arrays, strict=True)
            if spec.nbytes
        )
        return max(ends, default=0)

    @cached_property
    def places(self) -> dict[str, tuple[ArraySpec, int]]:
        """Each array's spec and where it starts, by name."""
        pairs = zip(self.arrays, self.offsets, strict=True)
        return {spec.name: (spec, offset) for spec, offset in pairs}

    @cached_property
    def gaps(self) -> npt.NDArray[np.int64]:
        """Where in the body the bytes lie that belong to no array, in bytes."""
        filled = [
            (o, o + spec.nbytes) for spec, o in self.places.values() if spec.nbytes
        ]
        edges = ((end, start) for (_, end), (start, _) in pairwise(filled))
        return np.array([i for end, start in edges for i in range(end, start)], int)

    @cached_property
    def bools(self) -> tuple[str, ...]:
        """The names of the arrays whose bytes may be 0 or 1 alone."""
        return tuple(spec.name for spec in self.arrays if spec.dtype == np.bool_)

    @cached_property
    def trainable(self) -> "Layout":
        """The arrays that have a gradient, in the same order."""
        return Layout(tuple(spec for spec in self.arrays if spec.trainable))

    @cached_property
    def tables(self) -> tuple[ArraySpec, ...]:
        """The arrays that travel by rows."""
        return tuple(spec for spec in self.arrays if spec.by_rows)

    @cached_property
    def dense(self) -> "Layout":
        """The arrays that travel whole, in the same order."""
        if not self.tables:
            return self
        return Layout(tuple(spec for spec in self.arrays if not spec.by_rows))

    def by_rows(self, names: Container[str]) -> "Layout":
        """Return the same arrays, of which those of these names are tables.

        Raises:
            VariableMismatchError: One of those cannot be a table.
        """
        return Layout(
            tuple(
                _checked(replace(spec, by_rows=spec.name in names), MAX_NAME_NBYTES)
                for spec in self.arrays
            )
        )

    @cached_property
    def narrowed(self) -> "Layout":
        """The same arrays, those of float32 as bfloat16."""
        narrow = _FLOATS[pb.BFLOAT16]
        return Layout(
            tuple(
                replace(spec, dtype=narrow) if spec.dtype == np.float32 else spec
                for spec in self.arrays
            )
        )

    def chosen(self, names: Iterable[str]) -> "Layout":
        """Return the arrays of these names, in their order.

        Raises:
            VariableMismatchError: There is none of a name, or it is there twice.
        """
        chosen: dict[str, ArraySpec] = {}
        for name in names:
            if name not in self.places:
                raise VariableMismatchError(
                    f"{name[:MAX_NAME_NBYTES]}: expected one of {some(self.places)}, "
                    "got another name"
                )
            if name in chosen:
                raise VariableMismatchError(f"{name}: expected once, got twice")
            chosen[name] = self.places[name][0]
        return Layout(tuple(chosen.values()))

    def require(self, got: "Layout") -> None:
        """Check that `got` has just these arrays, in any order.

        Raises:
            VariableMismatchError: It has not; the message begins with the first name
                that is amiss.
        """
        if got == self:
            return
        there = {spec.name: spec for spec in got.arrays}
        for spec in self.arrays:
            other = there.pop(spec.name, None)
            if other is None:
                raise VariableMismatchError(f"{spec.name}: expected {spec}, got none")
            if other != spec:
                raise VariableMismatchError(
                    f"{spec.name}: expected {spec}, got {other}"
                )
        for spec in there.values():
            raise self._unknown(spec)

    def require_some(self, got: "Layout") -> None:
        """Check that `got` has one or more of these arrays and no others, in any order.

        Raises:
            VariableMismatchError: It has not; the message begins with the first name
                that is amiss.
        """
        if not got.arrays:
            raise VariableMismatchError(
                f"layout: expected one or more of {some(self.places)}, got none"
            )
        for name, (spec, _) in got.places.items():
            expected, _ = self.places.get(name, (None, 0))
            if expected is None:
                raise self._unknown(spec)
            if spec != expected:
                raise VariableMismatchError(f"{name}: expected {expected}, got {spec}")

    def describes(self, arrays: Mapping[str, HasShape]) -> bool:
        """Say whether arrays have just this layout, in their mapping's order."""
        return len(arrays) == len(self.arrays) and all(
            (spec.name, spec.dtype, spec.shape) == (name, array.dtype, array.shape)
            for spec, (name, array) in zip(self.arrays, arrays.items(), strict=True)
        )

    def _unknown(self, spec: ArraySpec) -> VariableMismatchError:
        return VariableMismatchError(
            f"{spec.name}: expected one of {some(self.places)}, "
            f"got {spec} of another name"
        )

    def __iter__(self) -> Iterator[ArraySpec]:
        return iter(self.arrays)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.arrays)  # Asked for at every cycle, of thousands of arrays.


def _spec(name: str, array: HasShape) -> ArraySpec:
    # The wire is little-endian; `newbyteorder` forgets how the array is stored here.
    dtype = np.dtype(array.dtype).newbyteorder("=")
    if dtype not in _NUMBERS:
        known = ", ".join(known.name for known in _NUMBERS)
        raise VariableMismatchError(f"{name}: expected one of {known}, got {dtype}")
    return ArraySpec(name, dtype, tuple(array.shape))


def _read_spec(message: pb.ArraySpec) -> ArraySpec:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise VariableMismatchError(
            f"{message.name[:MAX_NAME_NBYTES]}: expected a known dtype, "
            f"got number {message.dtype}"
        )
    return ArraySpec(message.name, dtype, tuple(message.shape), message.by_rows)


def _checked(spec: ArraySpec, max_name_nbytes: int) -> ArraySpec:
    try:
        nbytes = len(spec.name.encode())
    except UnicodeEncodeError as error:
        raise VariableMismatchError(
            f"{spec.name!r}: expected a name of Unicode characters, got {error.reason}"
        ) from None
    if not 0 < nbytes <= max_name_nbytes:
        raise VariableMismatchError(
            f"name: expected 1 to {max_name_nbytes} bytes, got {nbytes}"
        )
    if any(unicodedata.category(letter) == "Cc" for letter in spec.name):
        raise VariableMismatchError(
            f"{spec.name!r}: expected a name without control characters"
        )
    if any(size < 0 for size in spec.shape):
        raise VariableMismatchError(
            f"{spec.name}: expected dimensions of 0 or more, got {spec.shape}"
        )
    if len(spec.shape) > _MAX_RANK:
        raise VariableMismatchError(
            f"{spec.name}: expected at most {_MAX_RANK} dimensions, "
            f"got {len(spec.shape)}"
        )
    if spec.by_rows and not (spec.trainable and len(spec.shape) > 1):
        raise VariableMismatchError(
            f"{spec.name}: expected of a table 2 or more dimensions and a "
            f"floating-point type, got {spec}"
        )
    # Numpy refuses the strides of (0, 2**62, 2**62), though it takes no bytes at all.
    if prod(max(size, 1) for size in spec.shape) * spec.dtype.itemsize > _MAX_NBYTES:
        raise VariableMismatchError(
            f"{spec.name}: expected at most {_MAX_NBYTES} bytes, got {spec.shape}"
        )
    return spec


def some(names: Collection[str], count: int = 5) -> str:
    """Return the first of names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(islice(names, count)) + more
