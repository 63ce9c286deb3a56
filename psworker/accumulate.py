"""Several gradients, pushed as one: their mean."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pswire.layout import ArraySpec
from pswire.rows import Rows
from pswire.values import Snapshot, Verdict
from psworker.gradients import Gradients, by_name, origin_of
from psworker.pushes import Origin, Pushes

_log = logging.getLogger("psworker")


class Accumulator:
    """Adds gradients up, and pushes the mean of every so many.

    The mean is judged by the oldest step that any of them was computed from. It has a
    variable's gradient if one of them has; the others count as zeros then. With `with`,
    what is left at the end is pushed there, unless the block fails; `verdict` tells
    what became of it.
    """

    def __init__(
        self, pushes: Pushes, generation: Callable[[], str], count: int
    ) -> None:
        """Start with none; `Client.accumulate` does.

        Args:
            pushes: The session's.
            generation: Tells the newest history that the session knows.
            count: How many make a push, 1 or more.

        Raises:
            ValueError: It is less.
        """
        if count < 1:
            raise ValueError(f"accumulate: expected 1 or more, got {count}")
        self._pushes = pushes
        self._newest = generation
        self._count = count
        self.verdict: Verdict | None = None
        """The last push's; None: there has been none."""
        self._empty()

    def add(
        self,
        gradients: Any,
        snapshot: Snapshot[Any] | Gradients | None = None,
        *,
        step_read: int | None = None,
        value: float | None = None,
    ) -> Verdict | None:
        """Add gradients; the last of so many pushes their mean.

        Those of a history that is gone are let go, and the log says so.

        Args:
            gradients: See `Client.push`.
            snapshot: See there.
            step_read: See there.
            value: See there; the mean of the values is pushed, if all have one.

        Returns:
            The verdict of that push; None: there are less than so many yet.

        Raises:
            ParameterServerError: As from `Client.push`; what was added is let go if it
                comes from the push.
        """
        arrays = by_name(gradients)
        origin = origin_of(gradients, snapshot, step_read, value, self._newest())
        self._pushes.laid_out(arrays)  # What fits no variable adds nothing.
        if self._origins and origin.generation != self._origins[0].generation:
            if origin.generation != self._newest():
                _tell_lost(1)
                return None
            _tell_lost(len(self._origins))
            self._empty()
        self._origins.append(origin)
        for name, array in arrays.items():
            self._add(name, array)
        return self.flush() if len(self._origins) == self._count else None

    def flush(self) -> Verdict | None:
        """Push the mean of what there is; None: there is nothing.

        Raises:
            ParameterServerError: As from `Client.push`; what was added is let go.
        """
        origins, sums, dtypes = self._origins, self._sums, self._dtypes
        rows = self._rows
        self._empty()
        if not origins:
            return None
        number = len(origins)
        values = [origin.value for origin in origins if origin.value is not None]
        mean: dict[str, Any] = {
            name: (array / number).astype(dtypes[name]) for name, array in sums.items()
        }
        for name, parts in rows.items():
            total, dtype = _sum(name, parts), parts[0].dtype
            mean[name] = Rows(total.ids, (total.values / number).astype(dtype))
        self.verdict = self._pushes.push(
            mean,
            Origin(
                origins[0].generation,
                min(origin.step_read for origin in origins),
                sum(values) / number if len(values) == number else None,
            ),
        )
        return self.verdict

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.flush()

    def _empty(self) -> None:
        self._origins: list[Origin] = []
        self._sums: dict[str, npt.NDArray[Any]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._rows: dict[str, list[Rows]] = {}

    def _add(self, name: str, array: npt.NDArray[Any] | Rows) -> None:
        if isinstance(array, Rows):
            self._rows.setdefault(name, []).append(array)
            return
        # Halves would lose what is small beside the sum.
        exact = np.promote_types(array.dtype, np.float32)
        self._sums[name] = np.add(self._sums.get(name, 0), array, dtype=exact)
        self._dtypes[name] = array.dtype


def _sum(name: str, parts: Sequence[Rows]) -> Rows:
    ids, values = list[npt.NDArray[Any]](), list[npt.NDArray[Any]]()
    for part in parts:
        of, array = np.asarray(part.ids), np.asarray(part.values)
        ids.append(of.reshape(-1))
        values.append(array.reshape(of.size, *array.shape[of.ndim :]))
    exact = np.promote_types(parts[0].dtype, np.float32)
    whole = np.concatenate(values).astype(exact)
    spec = ArraySpec(name, exact, whole.shape, by_rows=True)
    return Rows(np.concatenate(ids), whole).summed(spec)


def _tell_lost(number: int) -> None:
    _log.warning(
        "let go of %d accumulated gradients: the server has another history now",
        number,
    )
