"""What goes wrong in a rule, told as an error of ours."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from psserver.gradients import is_finite
from pswire.body import Arrays
from pswire.errors import InternalError, NonFiniteError

_log = logging.getLogger("psserver")


@contextmanager
def failures_told() -> Iterator[None]:
    """Raise InternalError, and log, whatever fails in the block."""
    try:
        yield
    except Exception as error:
        _log.exception("the rule failed", extra={"event": "rule_failed"})
        raise InternalError(
            f"rule: failed with {type(error).__name__}: {error}"
        ) from error


def require_finite(before: Arrays, after: Arrays) -> None:
    """Check that no number has become NaN or infinite that was not so before.

    Some rules keep infinities among their slots on purpose, as a best loss so far.

    Raises:
        NonFiniteError: One has; the message begins with the array's name.
    """
    for name, array in after.items():
        if is_finite(array):
            continue
        spoilt, old = ~np.isfinite(array), before.get(name)
        if old is not None and old.shape == array.shape:
            spoilt &= np.isfinite(old)
        if spoilt.any():
            raise NonFiniteError(
                f"{name}: expected a finite result of the rule, got an overflow from "
                "finite gradients"
            )
