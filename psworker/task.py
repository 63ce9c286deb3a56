"""A task: what a user brings to be trained."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pswire.imports import load
from psworker.drops import Drops, OnDrop


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of the data a worker reads.

    Attributes:
        index: 0 to count - 1.
        count: How many parts there are.
        epoch: How often the part had been leased before; None: it is not leased, but
            this worker's for good.

    Raises:
        ValueError: The index is not below the count.
    """

    index: int = 0
    count: int = 1
    epoch: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard: expected I/N with 0 <= I < N, got {self.index}/{self.count}"
            )

    @property
    def epochs(self) -> Iterable[int]:
        """The times to go through it: 0, 1, 2 and so on; of a leased part just one."""
        return itertools.count() if self.epoch is None else (self.epoch,)


@dataclass(frozen=True, slots=True)
class Leased:
    """That a worker reads parts of the data that the server leases to it.

    Attributes:
        count: How many parts there are.
    """

    count: int


def parse_shard(text: str) -> Shard | Leased:
    """Read `I/N`, or `auto/N`.

    Raises:
        ValueError: The text has another form, or the index is not below the count.
    """
    index, _, count = text.partition("/")
    numbers = [int(part) for part in (index, count) if part.isdecimal()]
    match index, numbers:
        case "auto", [parts] if parts > 0:
            return Leased(parts)
        case _, [part, parts]:
            return Shard(part, parts)
    raise ValueError(
        "shard: expected I/N, as in 0/4, or auto/N for parts that the server leases, "
        f"got {text!r}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What `module:task` names.

    Attributes:
        init: Makes the first variables: any pytree. Every worker calls it, and the
            first one's are taken.
        loss: `loss(params, batch)`, a scalar; with a parameter `rng` it also gets a
            fresh JAX key. It is differentiated and compiled by JAX.
        batches: `batches(shard)`, the batches of one part of the data, finite or not;
            each is what `loss` takes. `shard.epochs` says how often to go through it:
            a leased part is kept until its batches end.
        evaluate: `evaluate(params)`, named numbers to be printed at the end; None:
            nothing is.
        has_aux: Whether `loss` returns a scalar and something else beside it.
        seed: Of the keys that `rng` gets.
        on_drop: What becomes of a batch whose push was dropped, unless who trains says
            otherwise: see `train`.
        rows: By the name of each variable that is a table, `ids(batch)`: which of its
            rows a batch needs, in an array of any shape. In its place the loss gets
            these: an array of that shape, then of a row. No others travel.

    Raises:
        ValueError: `on_drop` is nothing that `train` takes.
    """

    init: Callable[[], Any]
    loss: Callable[..., Any]
    batches: Callable[[Shard], Iterable[Any]]
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    has_aux: bool = False
    seed: int = 0
    on_drop: OnDrop = "skip"
    rows: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Drops(self.on_drop, max_retries=0)


def require_no_rows(task: Task, *, prefetch: bool) -> None:
    """Check that no task prefetches that needs rows: the next batch tells which.

    Raises:
        ValueError: It does.
    """
    if prefetch and task.rows:
        tables = ", ".join(task.rows)
        raise ValueError(
            f"prefetch: expected no rows in the task, got those of {tables}"
        )


def load_task(target: str) -> Task:
    """Import a task by its `module:attribute`; a function is called for it.

    Raises:
        ValueError: There is none, or it is no task.
    """
    found = load(target)
    task = found() if callable(found) else found
    if not isinstance(task, Task):
        raise ValueError(
            f"{target}: expected a psworker.Task or a function that returns one, "
            f"got {type(task).__name__}"
        )
    return task
