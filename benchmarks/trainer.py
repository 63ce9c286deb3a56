"""A child that trains, with a gradient that takes time but hardly the processor."""

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import psworker
from benchmarks import product
from benchmarks.commands import obey
from benchmarks.link import DEVICE
from benchmarks.processes import cpu_s


def train(
    address: str,
    server_pid: int,
    nbytes: int,
    count: int,
    compute_s: float,
    connecting: dict[str, Any],
    training: dict[str, Any],
    seconds: float,
    at_least: int,
) -> dict[str, float]:
    """Train for a while, and return what a cycle took on average.

    The first does not count: a new connection has to find out how fast it may send.

    Args:
        address: The server's.
        server_pid: Its process.
        nbytes: Of all variables.
        count: How many variables.
        compute_s: How long a gradient takes at least.
        connecting: Options of `connect`.
        training: Options of `train`.
        seconds: No new cycle begins later than this.
        at_least: But so many count in any case.
    """
    marks: list[dict[str, float]] = []
    task = psworker.Task(
        init=lambda: product.variables(nbytes, count),
        loss=_slow_loss(compute_s),
        batches=lambda shard: _repeat(_noise(nbytes, count), seconds, 1 + at_least),
    )
    with product.connect(address, same_host=False, **connecting) as client:
        product.train(
            client, task, lambda progress: marks.append(_mark(server_pid)), **training
        )
    first, last, cycles = marks[0], marks[-1], len(marks) - 1
    return {name: (last[name] - first[name]) / cycles for name in first}


def staleness(address: str) -> list[tuple[int, int]]:
    """Return how many pushes the server has judged of each staleness, in steps."""
    return list(product.staleness(address).items())


@cache
def _slow_loss(compute_s: float) -> Callable[[Any, Any], Any]:
    """Make a loss whose gradient is the batch, after a while."""

    def wait() -> np.float32:
        time.sleep(compute_s)
        return np.float32(0)

    def loss(params: Any, batch: Any) -> Any:
        # Here, as on an accelerator: after the dispatch, before there are gradients.
        waited = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32))
        return waited + sum(jnp.vdot(params[name], batch[name]) for name in params)

    return loss


@cache
def _noise(nbytes: int, count: int) -> dict[str, jax.Array]:
    """Make gradients with small and large values, among which to choose is work."""
    generator = np.random.default_rng(0)
    return {
        name: jnp.asarray(generator.standard_normal(zeros.shape, np.float32))
        for name, zeros in product.variables(nbytes, count).items()
    }


def _repeat(batch: Any, seconds: float, at_least: int) -> Iterator[Any]:
    end = time.perf_counter() + seconds
    number = 0
    while number < at_least or time.perf_counter() < end:
        yield batch
        number += 1


def _mark(server_pid: int) -> dict[str, float]:
    """Return what the clocks show, and the counters of the link's device."""
    rows = Path("/proc/self/net/dev").read_text().splitlines()
    row = next(row for row in rows if row.lstrip().startswith(f"{DEVICE}:"))
    counters = row.partition(":")[2].split()
    return {
        "a cycle": time.perf_counter(),
        "worker CPU a cycle": time.process_time(),
        "server CPU a cycle": cpu_s(server_pid),
        "bytes pulled a cycle": int(counters[0]),
        "bytes pushed a cycle": int(counters[8]),
    }


if __name__ == "__main__":
    obey({"train": train, "staleness": staleness})
