"""The checks of the numbers that workers send: finite, and of a bounded norm."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pswire.errors import GradientNormError, NonFiniteError

_BLOCK = 2**16  # Elements whose squares are summed at once; they stay in the cache.


def require_finite(gradients: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check that no gradient holds NaN or an infinity.

    Raises:
        NonFiniteError: One does; the message begins with its name.
    """
    for name, gradient in gradients.items():
        if not is_finite(gradient):
            raise NonFiniteError(
                f"{name}: expected finite gradients, got {_culprit(gradient)}"
            )


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Say whether every element is finite."""
    # NaN and infinities never leave a sum, so a finite sum settles it in one pass
    # that writes nothing; a sum may also overflow by itself, so only then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        total = _quick_sum(array)
    return math.isfinite(total) or bool(np.isfinite(array).all())


def require_no_nan(variables: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check the first variables; infinities may be meant, in masks say.

    Raises:
        NonFiniteError: One holds NaN; the message begins with its name.
    """
    for name, variable in variables.items():
        if not is_finite(variable) and np.isnan(variable).any():
            raise NonFiniteError(f"{name}: expected first variables without NaN")


def require_norm(gradients: Iterable[npt.NDArray[Any]], max_grad_norm: float) -> None:
    """Check that the global L2 norm, over all gradients, is at most `max_grad_norm`.

    Raises:
        GradientNormError: It is more.
    """
    squares = sum(map(_sum_of_squares, gradients))
    if (norm := math.sqrt(squares)) > max_grad_norm:
        raise GradientNormError(
            f"gradients: expected a global norm of at most {max_grad_norm:g}, "
            f"got {norm:g}"
        )


def _sum_of_squares(array: npt.NDArray[Any]) -> float:
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):
        return sum(
            float(np.square(flat[start : start + _BLOCK], dtype=np.float64).sum())
            for start in range(0, flat.size, _BLOCK)
        )


def _quick_sum(array: npt.NDArray[Any]) -> Any:
    flat = array.reshape(-1)
    if array.dtype in (np.float32, np.float64):
        return np.dot(flat, flat)  # By BLAS, at the speed of the memory.
    return np.add.reduce(flat, dtype=np.float32)


def _culprit(array: npt.NDArray[Any]) -> str:
    where = np.argwhere(~np.isfinite(array))[0]
    return f"{array[tuple(where)]} at {tuple(where.tolist())}"
