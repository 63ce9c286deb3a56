"""Handwritten digits, classified by a small network that several workers train.

    psworker launch digits:task --app-dir examples --workers 4 --steps 1500 \
        --local-server -- --rule adam -a learning_rate=2e-3 --max-staleness 12

The data are scikit-learn's 1,797 images of 8 x 8 pixels, a fifth of them held out.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from psworker import Shard, Task

HIDDEN = 64
BATCH = 32
HELD_OUT = 360

# Every batch takes a worker about so long, as if the model were a larger one; the last
# worker is the slow machine among the others, by a factor that DIGITS_SLOWER sets.
PAUSE_S = 0.02
SLOWER = float(os.environ.get("DIGITS_SLOWER", "5"))

Params = dict[str, jax.Array]
Array = np.ndarray[Any, Any]
Batch = tuple[Array, Array]


def data() -> tuple[Batch, Batch]:
    """Return the images, scaled to 0..1, and labels to train on and to test with."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int32)
    held_out, rest = slice(None, HELD_OUT), slice(HELD_OUT, None)
    return (images[rest], labels[rest]), (images[held_out], labels[held_out])


def init() -> Params:
    """Return the network's first parameters, of one hidden layer."""
    first, second = jax.random.split(jax.random.key(0))
    return {
        "hidden/w": jax.random.normal(first, (64, HIDDEN)) * (2 / 64) ** 0.5,
        "hidden/b": jnp.zeros(HIDDEN),
        "output/w": jax.random.normal(second, (HIDDEN, 10)) * (1 / HIDDEN) ** 0.5,
        "output/b": jnp.zeros(10),
    }


def logits(params: Params, images: jax.Array | Array) -> jax.Array:
    """Score every image for every digit."""
    hidden = jax.nn.relu(images @ params["hidden/w"] + params["hidden/b"])
    return hidden @ params["output/w"] + params["output/b"]


def loss(params: Params, batch: Batch) -> jax.Array:
    """Return the mean cross entropy."""
    images, labels = batch
    scores = jax.nn.log_softmax(logits(params, images))
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


def batches(shard: Shard) -> Iterator[Batch]:
    """Yield this shard's images in batches, in another order every time."""
    (images, labels), _ = data()
    mine = slice(shard.index, None, shard.count)
    images, labels = images[mine], labels[mine]
    is_slow = shard.count > 1 and shard.index == shard.count - 1
    pause_s = PAUSE_S * (SLOWER if is_slow else 1)
    size = max(1, min(BATCH, len(labels)))
    for epoch in shard.epochs:
        rng = np.random.default_rng((shard.index, epoch))
        order = rng.permutation(len(labels))
        # All of one size: for another one JAX would compile the loss again.
        for first in range(0, len(labels) - size + 1, size):
            chosen = order[first : first + size]
            time.sleep(pause_s * rng.uniform(0.5, 1.5))
            yield images[chosen], labels[chosen]


def evaluate(params: Params) -> dict[str, float]:
    """Return the share of held-out digits that are recognized."""
    _, (images, labels) = data()
    guesses = logits(params, images).argmax(axis=1)
    return {"accuracy on held-out digits": float((guesses == labels).mean())}


task = Task(init=init, loss=loss, batches=batches, evaluate=evaluate)
