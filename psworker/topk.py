"""The largest elements of gradients, sent; the others, kept for later pushes."""

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pswire.body import Arrays
from pswire.encoding import INDICES_DTYPE
from pswire.layout import ALIGNMENT, ArraySpec, Layout

_MAX_SIZE = 2**32  # Elements: of a larger array, no index could tell all.
_STRIDE = 101  # Every so manieth element is in the sample.
_MARGIN = 1.25  # So many times as many candidates as are wanted, by the sample.


@dataclass(frozen=True, slots=True)
class Choice:
    """What a push sends of gradients.

    Attributes:
        arrays: The gradients, with all that has been kept of earlier ones.
        indices: Of each flattened array that does not travel whole, which elements do.
        counts: How many those are, of every array.
        generation: The history that the gradients belong to.
    """

    arrays: Arrays
    indices: Arrays
    counts: tuple[int, ...]
    generation: str


class TopK:
    """Chooses what to send, and remembers what has not been sent.

    An element that is left out is added to the gradient of the next push, and so on
    until the sum is among the largest. Nothing is lost, but it comes late: the
    staleness that the server judges is that of the newest part alone.
    A push that is not applied leaves all that is kept as it was, and so does one whose
    outcome nobody learns: if it was applied after all, its elements are sent twice. One
    that is applied without some variables leaves what is kept of these.

    References:
        Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory" (2018).
    """

    def __init__(self, fraction: float) -> None:
        """Start with nothing kept.

        Args:
            fraction: How many of an array's elements to send, over 0 and at most 1. An
                array so small that this saves no bytes travels whole.
        """
        self._fraction = fraction
        self._generation = ""
        self._kept: dict[str, npt.NDArray[Any]] = {}

    def choose(self, arrays: Arrays, wire: Layout, generation: str) -> Choice:
        """Choose what to send.

        Args:
            arrays: The gradients.
            wire: Their layout, with the types they travel as.
            generation: The history they belong to; what has been kept of another one
                is left out.
        """
        kept = self._kept if generation == self._generation else {}
        counts = tuple(map(self._count, wire))
        whole: dict[str, npt.NDArray[Any]] = {}
        indices: dict[str, npt.NDArray[Any]] = {}
        for spec, count in zip(wire, counts, strict=True):
            array = arrays[spec.name]
            if count < array.size:
                array = _sum(array, kept.get(spec.name))
                indices[spec.name] = _largest(array.reshape(-1), count)
            whole[spec.name] = array
        return Choice(whole, indices, counts, generation)

    def keep(
        self, choice: Choice, wire: Layout, left_out: Collection[str] = ()
    ) -> None:
        """Remember what a push has not sent, once it has been applied.

        Args:
            choice: What it has sent.
            wire: As for `choose`.
            left_out: The names of the variables that it was applied without.
        """
        arrived = choice.indices.keys() - left_out
        for name in arrived:
            where = choice.indices[name]
            spec, _ = wire.places[name]
            flat = choice.arrays[name].reshape(-1)
            flat[where] -= flat[where].astype(spec.dtype).astype(flat.dtype)
        if self._generation != choice.generation:
            self._kept, self._generation = {}, choice.generation
        # Of variables that were no part of it, what has been kept stays.
        self._kept |= {name: choice.arrays[name] for name in arrived}

    def _count(self, spec: ArraySpec) -> int:
        size = prod(spec.shape)
        if spec.by_rows or not spec.trainable:  # Rows, or their ids.
            return size
        count = ceil(self._fraction * size)
        parts = (count * INDICES_DTYPE.itemsize, count * spec.dtype.itemsize)
        saves = sum(map(_padded, parts)) < _padded(spec.nbytes)
        return count if saves and size <= _MAX_SIZE else size


def _sum(array: npt.NDArray[Any], kept: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Return a new array, in which what is left can stay."""
    exact = np.promote_types(array.dtype, np.float32)
    # Gradients of a wrong shape are the server's to refuse.
    if kept is None or kept.shape != array.shape:
        return np.array(array, exact, order="C")
    return np.add(array, kept, dtype=exact, order="C")


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _largest(flat: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return where the elements of largest magnitude are; NaN is larger than all."""
    magnitudes = np.abs(flat)
    candidates = _candidates(magnitudes, count)
    if candidates is not None:
        magnitudes = magnitudes[candidates]
    first = magnitudes.size - count
    where = np.argpartition(magnitudes, first)[first:]
    chosen = where if candidates is None else candidates[where]
    return np.sort(chosen).astype(INDICES_DTYPE)


def _candidates(magnitudes: npt.NDArray[Any], count: int) -> npt.NDArray[Any] | None:
    """Return where all of the largest must be, or None: to look would not pay.

    A sample tells about how large they are: to compare all elements with one number is
    many times as fast as to find their order.
    """
    sample = magnitudes[::_STRIDE]
    rank = ceil(_MARGIN * count / _STRIDE)
    if not 10 < rank < sample.size // 4:
        return None
    floor = np.partition(sample, sample.size - rank)[sample.size - rank]
    candidates = np.flatnonzero(~(magnitudes < floor))
    return candidates if candidates.size >= count else None
