"""What of arrays travels: all of it, or less at a loss that the sender chose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Arrays, Body
from pswire.errors import InvalidRequestError, VariableMismatchError
from pswire.layout import ArraySpec, Layout

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

INDICES_DTYPE = np.dtype(np.uint32)

_INDICES = "\0"
"""Behind an array's name, that of its indices: no array of a user's has such a name."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the arrays of a layout travel.

    Attributes:
        wire_dtype: What those of float32 travel as; None: as they are. Every number is
            rounded to the nearest, ties to even; what lies halfway past the largest, or
            farther, becomes an infinity.
        counts: How many elements of each array travel, in the layout's order; the
            others are zero. None: all.
    """

    wire_dtype: np.dtype[Any] | None = None
    counts: tuple[int, ...] | None = None

    @staticmethod
    def from_proto(wire_dtype: pb.DType, counts: Sequence[int] = ()) -> "Encoding":
        """Read an encoding from anyone at all.

        Raises:
            InvalidRequestError: The dtype is none that float32 may travel as.
        """
        if not (wire_dtype or counts):
            return PLAIN
        if wire_dtype not in (pb.DTYPE_UNSPECIFIED, pb.BFLOAT16):
            raise InvalidRequestError(
                f"wire_dtype: expected BFLOAT16 or none, got number {wire_dtype}"
            )
        return Encoding(BFLOAT16 if wire_dtype else None, tuple(counts) or None)

    @property
    def wire_dtype_number(self) -> pb.DType:
        """The wire dtype as messages name it."""
        return pb.BFLOAT16 if self.wire_dtype else pb.DTYPE_UNSPECIFIED

    def layout(self, layout: Layout) -> Layout:
        """Return the layout of what travels.

        Raises:
            VariableMismatchError: There is not one count for each array, or one is of
                more elements than there are.
        """
        if self.wire_dtype is not None:
            layout = layout.narrowed
        return layout if self.counts is None else _sparse(layout, self.counts)

    def encode(self, arrays: Arrays, indices: Arrays) -> Arrays:
        """Return what travels of arrays; the numbers are rounded when they are sent.

        Args:
            arrays: All of them.
            indices: Of the flattened arrays of which not all elements travel, which
                do: rising.
        """
        chosen = {
            name: array.reshape(-1)[indices[name]] if name in indices else array
            for name, array in arrays.items()
        }
        return chosen | {name + _INDICES: where for name, where in indices.items()}

    def decode(self, layout: Layout, received: Arrays) -> Body:
        """Return all arrays of a layout from what has travelled of them.

        Raises:
            VariableMismatchError: The indices of an array do not rise, or reach past
                its end.
        """
        if self.counts is None:
            return Body.gather(layout, received)
        body = Body.unwritten(layout)
        for name in layout.places:
            if name + _INDICES in received:
                where = received[name + _INDICES]
                flat = body[name].reshape(-1)
                _require_rising(name, where, flat.size)
                flat[:] = 0
                flat[where] = received[name]
            else:
                np.copyto(body[name], received[name])
        return body


PLAIN = Encoding()


# A worker sends as many elements every time, so what is found out once serves again.
@lru_cache(maxsize=8)
def _sparse(layout: Layout, counts: tuple[int, ...]) -> Layout:
    if len(counts) != len(layout.arrays):
        raise VariableMismatchError(
            f"counts: expected {len(layout.arrays)}, one an array, got {len(counts)}"
        )

    def specs() -> Iterator[ArraySpec]:
        for spec, count in zip(layout, counts, strict=True):
            size = prod(spec.shape)
            if count > size:
                raise VariableMismatchError(
                    f"{spec.name}: expected at most {size} elements, got {count}"
                )
            if count == size:
                yield spec
            else:
                yield ArraySpec(spec.name + _INDICES, INDICES_DTYPE, (count,))
                yield ArraySpec(spec.name, spec.dtype, (count,))

    return Layout(tuple(specs()))


def _require_rising(name: str, where: npt.NDArray[Any], size: int) -> None:
    if not len(where):
        return
    if where[-1] >= size or (where[1:] <= where[:-1]).any():
        raise VariableMismatchError(
            f"{name}: expected indices that rise and are below {size}"
        )
