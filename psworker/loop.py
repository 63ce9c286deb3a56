"""The training loop of one worker."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from pswire.body import Body
from pswire.errors import GenerationError, NotInitializedError
from pswire.values import Snapshot
from psworker.batches import Batch, batches
from psworker.drops import Drops, OnDrop, require_no_retry
from psworker.gradient import Compute, differentiate
from psworker.overlap import Exchanger, Judged, Overlap
from psworker.task import Shard, Task, require_no_rows

_RESTARTED = (GenerationError, NotInitializedError)

_MAX_WAITING = 16  # Batches: each is in memory until it comes again.

_log = logging.getLogger("psworker")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one worker has come.

    Attributes:
        step: The step at its last push, in steps.
        applied: Its pushes that were applied.
        dropped: Its pushes that were dropped.
        loss: The loss at its last push; None: none yet.
        unlearned: Its batches that no push was applied of, though one was made.
    """

    step: int = 0
    applied: int = 0
    dropped: int = 0
    loss: float | None = None
    unlearned: int = 0

    def after(self, judged: Judged, batch: Batch) -> "Progress":
        applied = judged.verdict.applied
        progress = self.learned(batch) if applied else self.missed(batch)
        return replace(
            progress,
            step=judged.verdict.step,
            applied=self.applied + applied,
            dropped=self.dropped + (not applied),
            loss=judged.loss,
        )

    def learned(self, batch: Batch) -> "Progress":
        return replace(self, unlearned=self.unlearned - (batch.tries > 0))

    def missed(self, batch: Batch) -> "Progress":
        return replace(self, unlearned=self.unlearned + (batch.tries == 0))


def train(
    client: Exchanger,
    task: Task,
    shards: Shard | Iterable[Shard],
    *,
    steps: int | None = None,
    on_drop: OnDrop | None = None,
    max_retries: int = 3,
    prefetch: bool = False,
    background_push: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train until the batches end, of all parts, or the step is reached.

    Args:
        client: The server, or anything that behaves like it.
        task: What to train.
        shards: Which part of the data to read, or which ones, one after another.
        steps: Stop once the global step is this high; None: never.
        on_drop: "skip" goes on with the next batch after a drop, "retry" computes the
            same batch again from fresh variables, at most `max_retries` times. With
            "requeue" it comes again, as often, after the others of its part, or once
            16 wait. Both do so too after a push that was lost as the server restarted.
            A function takes the verdict of each drop, and says which: True to retry.
            None: as the task says.
        max_retries: See there.
        prefetch: Whether to pull the next variables while a gradient is computed. They
            are older by what all workers push in one cycle of this one.
        background_push: Whether to pull and compute while a push is on its way. Its
            verdict comes one push later, and what is pulled is older by as much again.
            When the server restarts, two batches are lost, not one.
        report: Called after every verdict.

    Returns:
        What this worker has done.

    Raises:
        ParameterServerError: The server refused a push, or was away for too long; or
            no part that it leases has a batch.
        ValueError: `on_drop` or `max_retries` is none of those, or "retry" or a
            function stands beside `prefetch` or `background_push`; or `prefetch` beside
            rows, since only the next batch tells which it needs.
    """
    parts = (shards,) if isinstance(shards, Shard) else shards
    drops = Drops(task.on_drop if on_drop is None else on_drop, max_retries)
    require_no_retry(drops.on_drop, prefetch=prefetch, background_push=background_push)
    require_no_rows(task, prefetch=prefetch)
    with Overlap(
        client,
        prefetch=prefetch,
        background_push=background_push,
        exchanges=not task.rows,
    ) as calls:
        training = _Training(client, task, calls, drops, report)
        for batch in batches(task, parts, training.due):
            once_more: Batch | None = batch
            while once_more:
                if training.reaches(steps):
                    return training.progress
                once_more = training.push(once_more)
        training.settle()
        return training.progress


class _Training:
    """Where one worker's training stands."""

    def __init__(
        self,
        client: Exchanger,
        task: Task,
        calls: Overlap,
        drops: Drops,
        report: Callable[[Progress], None],
    ) -> None:
        self._client = client
        self._task = task
        self._calls = calls
        self._drops = drops
        self._report = report
        self._in_flight: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._compute, self._snapshot = self._start()
        self.progress = Progress(step=self._snapshot.step)

    def push(self, batch: Batch) -> Batch | None:
        """Push the gradient of a batch; return it if it is to come again at once."""
        self._in_flight.append(batch)
        with self._restarting():
            if self._task.rows:
                self._snapshot = self._pull_rows(batch)
            snapshot = self._snapshot
            result, gradients = self._compute(
                snapshot.params, batch.content, batch.rng, None, snapshot.rows
            )
            loss = float(result[0] if self._task.has_aux else result)
            judged = self._calls.push(gradients, snapshot, loss)
            once_more = self._count(judged)
            if not self._task.rows:
                self._snapshot = self._calls.pull()
            return once_more
        return None

    def due(self, has_part_ended: bool) -> Batch | None:
        """Return a batch that is to come again now, if there is one."""
        requeues = self._drops.on_drop == "requeue"
        if has_part_ended and requeues and not self._waiting:
            self.settle()  # What is in flight may be the last one.
        room = _MAX_WAITING - 1 if requeues and not has_part_ended else 0
        return self._waiting.popleft() if len(self._waiting) > room else None

    def reaches(self, steps: int | None) -> bool:
        """Say whether the step is this high, with no push in flight; None: never."""
        if steps is None or self.progress.step < steps:
            return False
        self.settle()
        return self.progress.step >= steps

    def _pull_rows(self, batch: Batch) -> Snapshot[Body]:
        wanted = {name: ids(batch.content) for name, ids in self._task.rows.items()}
        return self._calls.pull_rows(wanted)

    def settle(self) -> None:
        """Wait for the push in flight."""
        with self._restarting():
            self._count(self._calls.settle())

    @contextmanager
    def _restarting(self) -> Iterator[None]:
        """Start again if the server has another history, or has forgotten this one."""
        try:
            yield
        except _RESTARTED as error:
            has_lost_all = isinstance(error, NotInitializedError)
            if has_lost_all:
                _log.warning("the server has lost its variables: training begins anew")
            else:
                _log.warning("starting again from the newest variables: %s", error)
            with suppress(*_RESTARTED):  # Lost with its history.
                self._count(self._calls.settle())
            while self._in_flight:
                batch = self._in_flight.popleft()
                self.progress = self.progress.missed(batch)
                if self._drops.recovers(batch.tries):
                    self._requeue(batch)
            self._compute, self._snapshot = self._start(has_lost_all)
            self._go_on_at(self._snapshot.step)

    def _go_on_at(self, step: int) -> None:
        before = self.progress.step
        if step < before:
            _log.warning("the server went back from step %d to step %d", before, step)
        self.progress = replace(self.progress, step=step)

    def _start(self, has_nothing: bool = True) -> tuple[Compute, Snapshot[Body]]:
        params = self._task.init()
        # Who was first long ago is told so again, of a server that still has them.
        tables = tuple(self._task.rows)
        if self._client.initialize(params, tables=tables) and has_nothing:
            _log.info("initialized the variables")
        compute = differentiate(self._task.loss, params, has_aux=self._task.has_aux)
        return compute, self._calls.start()

    def _count(self, judged: Judged | None) -> Batch | None:
        """Count a verdict; return its batch if that is to come again at once."""
        if judged is None:
            return None
        batch = self._in_flight.popleft()
        self.progress = self.progress.after(judged, batch)
        self._report(self.progress)
        if judged.verdict.applied:
            return None
        if self._drops.requeues(batch.tries):
            self._requeue(batch)
        is_wanted = self._drops.retries(judged.verdict, batch.tries)
        return replace(batch, tries=batch.tries + 1) if is_wanted else None

    def _requeue(self, batch: Batch) -> None:
        self._waiting.append(replace(batch, tries=batch.tries + 1))
