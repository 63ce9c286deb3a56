"""The parts of a body that JAX can take as one array each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from pswire.body import Body, Bytes
from pswire.layout import ArraySpec, Layout

AnyArray = TypeVar("AnyArray", npt.NDArray[Any], jax.Array)

_ALONE_NBYTES = 2**18
"""From this size on, an array that has to be seen as such is a part by itself: cutting
it out would cost more than passing it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Trainable arrays of one type that lie next to one another.

    They do so in the variables' body and in the gradients', though elsewhere, if
    there are arrays in between that are not trainable.

    Attributes:
        dtype: Of all its elements.
        arrays: The arrays, each with the element it starts at.
        size: How many elements it has, gaps included.
        start: Where it begins in the variables' body, in bytes.
        gradient_start: Where it begins in the gradients' body, in bytes.
        gaps: Its bytes that belong to no array.
    """

    dtype: np.dtype[Any]
    arrays: tuple[tuple[ArraySpec, int], ...]
    size: int
    start: int
    gradient_start: int
    gaps: npt.NDArray[np.int64]

    def of_variables(self, body: Body) -> npt.NDArray[Any]:
        return self._view(body, self.start)

    def of_gradients(self, body: Body) -> npt.NDArray[Any]:
        return self._view(body, self.gradient_start)

    def bytes_of(self, array: npt.NDArray[Any]) -> Bytes:
        """Return the bytes that travel: those between two arrays are zero."""
        stored = array.view(np.uint8)
        if self.gaps.size and stored[self.gaps].any():
            stored = stored.copy()
            stored[self.gaps] = 0
        return stored

    def cut(self, array: AnyArray) -> dict[str, AnyArray]:
        """Return the arrays that this one is made of."""
        return {
            spec.name: array[start : start + prod(spec.shape)].reshape(spec.shape)
            for spec, start in self.arrays
        }

    def join(self, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """Make one array of many, with zeros between them, as `cut` takes it."""
        pieces, end = list[jax.Array](), 0
        for spec, start in self.arrays:
            piece = arrays[spec.name].reshape(-1)
            # An empty array says that it starts at 0, wherever it comes.
            pieces += [jnp.zeros(max(start - end, 0), piece.dtype), piece]
            end = max(end, start + piece.size)
        return jnp.concatenate(pieces)

    def _view(self, body: Body, start: int) -> npt.NDArray[Any]:
        if not self.size:
            return np.empty(0, self.dtype)
        stop = start + self.size * self.dtype.itemsize
        return body.between(start, stop).view(self.dtype)


def segments(layout: Layout, *, apart: bool) -> tuple[Segment, ...]:
    """Divide the trainable arrays of a layout, in its order.

    Args:
        layout: Of the variables.
        apart: Whether large arrays get segments of their own.
    """
    return tuple(_segment(layout, names) for names in _neighbours(layout, apart=apart))


def _neighbours(layout: Layout, *, apart: bool) -> Iterator[list[str]]:
    def kind(place: tuple[int, ArraySpec]) -> tuple[object, ...]:
        number, spec = place
        alone = apart and spec.nbytes >= _ALONE_NBYTES
        return spec.trainable, spec.dtype, number if alone else -1

    for (trainable, *_), group in groupby(enumerate(layout), key=kind):
        if trainable:
            yield [spec.name for _, spec in group]


def _segment(layout: Layout, names: list[str]) -> Segment:
    specs = [layout.places[name][0] for name in names]
    dtype, part = specs[0].dtype, Layout(tuple(specs))
    # An array of no elements takes no place, so another tells where all begin.
    first = next((spec.name for spec in specs if spec.nbytes), names[0])
    return Segment(
        dtype=dtype,
        arrays=tuple(
            (spec, start // dtype.itemsize if spec.nbytes else 0)
            for spec, start in part.places.values()
        ),
        size=part.nbytes // dtype.itemsize,
        start=layout.places[first][1],
        gradient_start=layout.trainable.places[first][1],
        gaps=part.gaps,
    )
