"""What a worker does with a batch whose push was dropped."""

from typing import Literal

OnDrop = Literal["skip", "retry"]


def retries(on_drop: OnDrop, max_retries: int) -> int:
    """Return how often a dropped batch is computed again.

    Raises:
        ValueError: `on_drop` is neither "skip" nor "retry", or the number negative.
    """
    if on_drop not in ("skip", "retry"):
        raise ValueError(f'on_drop: expected "skip" or "retry", got {on_drop!r}')
    if max_retries < 0:
        raise ValueError(f"max_retries: expected 0 or more, got {max_retries}")
    return max_retries if on_drop == "retry" else 0


def require_skip(on_drop: str, *, prefetch: bool, background_push: bool) -> None:
    """Check that no batch is to be retried where calls overlap with computing.

    The variables for the next gradient are there, or on their way, before a drop is
    known, so a retry would be as stale as what it repeats.

    Raises:
        ValueError: One is.
    """
    if on_drop == "retry" and (prefetch or background_push):
        setting = "prefetch" if prefetch else "background_push"
        raise ValueError(f'on_drop: expected "skip" beside {setting}, got "retry"')
