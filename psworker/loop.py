"""The training loop of one worker."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax

from pswire.body import Body
from pswire.errors import GenerationError, NotInitializedError
from pswire.values import Snapshot, Verdict
from psworker.client import OnDrop, retries
from psworker.gradient import Compute, differentiate, takes_rng
from psworker.task import Shard, Task

_log = logging.getLogger("psworker")


class Exchanger(Protocol):
    """What the loop needs of a client."""

    def initialize(self, params: Any) -> bool: ...

    def pull_body(self) -> Snapshot[Body]: ...

    def exchange(
        self, gradients: Body, snapshot: Snapshot[Body], *, value: float | None
    ) -> tuple[Verdict, Snapshot[Body]]: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one worker has come.

    Attributes:
        step: The step at its last push, in steps.
        applied: Its pushes that were applied.
        dropped: Its pushes that were dropped.
        loss: The loss at its last push; None: none yet.
    """

    step: int = 0
    applied: int = 0
    dropped: int = 0
    loss: float | None = None

    def after(self, verdict: Verdict, loss: float) -> "Progress":
        return Progress(
            step=verdict.step,
            applied=self.applied + verdict.applied,
            dropped=self.dropped + (not verdict.applied),
            loss=loss,
        )


def train(
    client: Exchanger,
    task: Task,
    shard: Shard,
    *,
    steps: int | None = None,
    on_drop: OnDrop = "skip",
    max_retries: int = 3,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train until the batches end or the step is reached.

    Args:
        client: The server, or anything that behaves like it.
        task: What to train.
        shard: Which part of the data to read.
        steps: Stop once the global step is this high; None: never.
        on_drop: "skip" goes on with the next batch after a drop, "retry" computes the
            same batch again from fresh variables, at most `max_retries` times.
        max_retries: See there.
        report: Called after every push.

    Returns:
        What this worker has done.

    Raises:
        ParameterServerError: The server refused a push, or was away for too long.
        ValueError: `on_drop` or `max_retries` is none of those.
    """
    compute, snapshot = _start(client, task)
    progress = Progress(step=snapshot.step)
    attempts = 1 + retries(on_drop, max_retries)
    batches = zip(_keys(task, shard), task.batches(shard), strict=False)
    for rng, batch in batches:
        for _ in range(attempts):
            if steps is not None and progress.step >= steps:
                return progress
            result, gradients = compute(snapshot.params, batch, rng)
            loss = float(result[0] if task.has_aux else result)
            try:
                verdict, snapshot = client.exchange(gradients, snapshot, value=loss)
            except (GenerationError, NotInitializedError) as error:
                _log.warning("the server has restarted; starting again: %s", error)
                compute, snapshot = _start(client, task)
                progress = replace(progress, step=snapshot.step)
                break
            progress = progress.after(verdict, loss)
            report(progress)
            if verdict.applied:
                break
    return progress


def _start(client: Exchanger, task: Task) -> tuple[Compute, Snapshot[Body]]:
    params = task.init()
    if client.initialize(params):
        _log.info("initialized the variables")
    compute = differentiate(task.loss, params, has_aux=task.has_aux)
    return compute, client.pull_body()


def _keys(task: Task, shard: Shard) -> Iterator[Any]:
    """Yield a fresh key for every batch, or None for a loss that wants none."""
    if not takes_rng(task.loss):
        while True:
            yield None
    own = jax.random.fold_in(jax.random.key(task.seed), shard.index)
    number = 0
    while True:
        yield jax.random.fold_in(own, number)
        number += 1
