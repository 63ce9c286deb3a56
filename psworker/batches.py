"""The batches that one worker goes through, with a key for each."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from psworker.gradient import takes_rng
from psworker.task import Shard, Task


def batches(task: Task, shards: Iterable[Shard]) -> Iterator[tuple[Any, Any]]:
    """Yield a JAX key and a batch at a time, of one part of the data after another.

    Args:
        task: Whose loss takes them; if it wants no key, that is None.
        shards: The parts.

    Raises:
        ValueError: No part has a batch: parts that are leased would go on for ever.
    """
    empty = 0
    for shard in shards:
        empty += 1
        for pair in zip(_keys(task, shard), task.batches(shard), strict=False):
            empty = 0
            yield pair
        if shard.epoch is not None and empty >= shard.count:
            raise ValueError(
                f"batches: expected some in one of {shard.count} parts, got none; cut "
                "the data into fewer parts, or smaller batches"
            )


def _keys(task: Task, shard: Shard) -> Iterator[Any]:
    """Yield a fresh key for every batch, or None for a loss that wants none."""
    if not takes_rng(task.loss):
        while True:
            yield None
    own = jax.random.fold_in(jax.random.key(task.seed), shard.index)
    if shard.epoch is not None:
        own = jax.random.fold_in(own, shard.epoch)
    number = 0
    while True:
        yield jax.random.fold_in(own, number)
        number += 1
