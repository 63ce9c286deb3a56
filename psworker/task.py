"""A task: what a user brings to be trained."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pswire.imports import load


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of the data a worker reads.

    Attributes:
        index: 0 to count - 1.
        count: How many parts there are.

    Raises:
        ValueError: The index is not below the count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard: expected I/N with 0 <= I < N, got {self.index}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `I/N`.

        Raises:
            ValueError: The text has another form.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(f"shard: expected I/N, as in 0/4, got {text!r}")
        return cls(int(index), int(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What `module:task` names.

    Attributes:
        init: Makes the first variables: any pytree. Every worker calls it, and the
            first one's are taken.
        loss: `loss(params, batch)`, a scalar; with a parameter `rng` it also gets a
            fresh JAX key. It is differentiated and compiled by JAX.
        batches: `batches(shard)`, the batches of one worker, finite or not; each is
            what `loss` takes.
        evaluate: `evaluate(params)`, named numbers to be printed at the end; None:
            nothing is.
        has_aux: Whether `loss` returns a scalar and something else beside it.
        seed: Of the keys that `rng` gets.
    """

    init: Callable[[], Any]
    loss: Callable[..., Any]
    batches: Callable[[Shard], Iterable[Any]]
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    has_aux: bool = False
    seed: int = 0


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
