"""The example's digits, cut so that one worker alone has one of them."""

import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples import digits
from psworker import Shard, Task

OWN_DIGIT = 7
"""Whose images are the last worker's alone."""

_PAUSE_S = 0.03
_JITTER = 0.2

_data = cache(digits.data)  # To read the file takes longer than to look at it.

PacedBatch = tuple[digits.Array, digits.Array, np.float32]


def part(labels: digits.Array, index: int, count: int) -> digits.Array:
    """Return which images are a worker's: about as many as any other's.

    Args:
        labels: Of all images.
        index: The worker's number; the last one has all of `OWN_DIGIT`.
        count: How many workers there are.
    """
    # Its own digit at the end, so that the last of equal pieces has it.
    order = np.argsort(labels == OWN_DIGIT, kind="stable")
    own = int((labels == OWN_DIGIT).sum())
    last = max(own, len(labels) // count)
    if index == count - 1:
        return order[-last:]
    return order[:-last][index :: count - 1]


def make_task(seed: int, slowdown: int) -> Task:
    """Make the task of one worker, whose batches never end.

    Args:
        seed: Of the order of its images, and of its pauses.
        slowdown: How often as long it takes for a gradient as others do.
    """

    def batches(shard: Shard) -> Iterator[PacedBatch]:
        (images, labels), _ = _data()
        mine = part(labels, shard.index, shard.count)
        rng = np.random.default_rng((seed, shard.index))
        _metronome.start()
        while True:
            order = rng.permutation(mine)
            for first in range(0, len(order) - digits.BATCH + 1, digits.BATCH):
                chosen = order[first : first + digits.BATCH]
                pause_s = _PAUSE_S * slowdown * rng.uniform(1 - _JITTER, 1 + _JITTER)
                yield images[chosen], labels[chosen], np.float32(pause_s)

    return Task(init=digits.init, loss=_loss, batches=batches)


def measure(params: digits.Params) -> dict[str, float]:
    """Return what held-out images say of variables."""
    _, (images, labels) = _data()
    right = np.asarray(digits.logits(params, images).argmax(axis=1)) == labels
    return {
        "accuracy": float(right.mean()),
        "own_accuracy": float(right[labels == OWN_DIGIT].mean()),
        "loss": float(digits.loss(params, (images, labels))),
    }


def _loss(params: digits.Params, batch: PacedBatch) -> jax.Array:
    images, labels, pause_s = batch
    # Here, between pull and push, as if it were computed that long: also for a batch
    # that is computed again.
    nothing = jax.ShapeDtypeStruct((), jnp.float32)
    waited = jax.pure_callback(_metronome.wait, nothing, pause_s)
    return waited + digits.loss(params, (images, labels))


class _Metronome:
    """Waits from the last time on: what a cycle takes besides is part of the pause."""

    def start(self) -> None:
        self._last = time.monotonic()

    def wait(self, pause_s: Any) -> np.float32:
        time.sleep(max(0.0, self._last + float(pause_s) - time.monotonic()))
        self.start()
        return np.float32(0)


_metronome = _Metronome()
