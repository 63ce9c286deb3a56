"""The batches that one worker goes through, with a key for each."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from pswire.errors import InvalidRequestError
from psworker.gradient import takes_rng
from psworker.task import Shard, Task

_PAUSE_S = 1.0

_log = logging.getLogger("psworker")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on its way to be learned from.

    Attributes:
        rng: A JAX key, or None for a loss that wants none.
        content: What the loss takes.
        tries: How many pushes of it were lost.
    """

    rng: Any
    content: Any
    tries: int = 0


def batches(
    task: Task, shards: Iterable[Shard], due: Callable[[bool], Batch | None]
) -> Iterator[Batch]:
    """Yield the batches of one part of the data after another.

    Args:
        task: Whose loss takes them.
        shards: The parts.
        due: Asked after each batch, and with True after the last one of a part, for one
            that is to come again now.

    Raises:
        InvalidRequestError: No part has a batch, though they are leased: it would ask
            for one after another for ever.
    """
    empty = set[int]()
    for shard in shards:
        empty.add(shard.index)
        for pair in zip(_keys(task, shard), task.batches(shard), strict=False):
            empty.clear()
            yield Batch(*pair)
            while batch := due(False):
                yield batch
        while batch := due(True):
            yield batch
        if shard.epoch is None or not empty:
            continue
        if len(empty) == shard.count:
            raise InvalidRequestError(
                f"batches: expected some in one of {shard.count} parts, got none; cut "
                "the data into fewer parts, or smaller batches"
            )
        _log.warning("part %d of %d has no batch", shard.index, shard.count)
        time.sleep(_PAUSE_S)  # Others may have all those that have some.


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
