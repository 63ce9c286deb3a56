"""A child that times what only memory limits: copies, the triad, and the rules."""

from collections.abc import Callable

import numpy as np

from benchmarks import product
from benchmarks.commands import obey, timed

_WARM_UPS = 5
"""So often an action may still take fresh memory, which the kernel has to clear."""

_actions: dict[str, Callable[[], object]] = {}


def copies(nbytes: int, seconds: float, at_least: int) -> list[float]:
    """Time copying so many bytes to memory that is there already."""
    return _timed(f"copy {nbytes}", lambda: _copy(nbytes), seconds, at_least)


def triads(nbytes: int, seconds: float, at_least: int) -> list[float]:
    """Time b + s * c, for arrays of so many bytes."""
    return _timed(f"triad {nbytes}", lambda: _triad(nbytes), seconds, at_least)


def steps(
    rule: str, nbytes: int, count: int, seconds: float, at_least: int
) -> list[float]:
    """Time applying a rule."""
    return _timed(
        f"{rule} {nbytes}",
        lambda: product.rule_step(rule, nbytes, count),
        seconds,
        at_least,
    )


def _timed(
    name: str,
    make: Callable[[], Callable[[], object]],
    seconds: float,
    at_least: int,
) -> list[float]:
    if name not in _actions:
        _actions[name] = make()
        for _ in range(_WARM_UPS):
            _actions[name]()
    return timed(_actions[name], seconds, at_least)


def _copy(nbytes: int) -> Callable[[], object]:
    source, target = (np.full(nbytes, value, np.uint8) for value in (1, 2))
    return lambda: np.copyto(target, source)


def _triad(nbytes: int) -> Callable[[], object]:
    import jax  # Which takes a second, and copies need none.
    import jax.numpy as jnp

    compute = jax.jit(lambda b, c, s: b + s * c)
    b, c = (jnp.full(nbytes // 4, value, jnp.float32) for value in (1, 2))
    scale = jnp.float32(3)
    return lambda: compute(b, c, scale).block_until_ready()


if __name__ == "__main__":
    obey({"copies": copies, "triads": triads, "steps": steps})
