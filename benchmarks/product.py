"""What is measured: the one place that knows how to call it."""

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

import psworker
from pswire.body import Body
from pswire.layout import Layout
from pswire.status import Durability
from pswire.values import Snapshot

RULES: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 0.01},
    "momentum": {"learning_rate": 0.01, "momentum": 0.9},
    "adam": {"learning_rate": 0.01},
}
"""The arguments of each rule; momentum is SGD with it."""

ROW_NBYTES = 64
"""The size of a table's rows."""

_GRADIENT = 1e-6
_ROWS = 1000  # Of a table, in a pull and a push.
_DRAWS = 64


def serve_options(rule: str, host: str) -> list[str]:
    """Return the options of `psserver serve` for a server that drops nothing."""
    options = ["--rule", _factory(rule), "--max-staleness", "off"]
    options += ["--host", host, "--port", "0", "--http-port", "off", "--insecure"]
    for name, value in RULES[rule].items():
        options += ["-a", f"{name}={value}"]
    return options


def variables(nbytes: int, count: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return arrays of float32 zeros, which together have so many bytes."""
    size = nbytes // (4 * count)
    return {f"layer{i:04}/w": np.zeros(size, np.float32) for i in range(count)}


def connect(address: str, *, same_host: bool, **options: Any) -> "psworker.Client":
    """Join a server by one of the two paths."""
    return psworker.connect(address, same_host=same_host, **options)


def pull(client: "psworker.Client") -> Snapshot[Body]:
    """Return the newest snapshot; what `exchange` makes of it has the same form."""
    return client.pull_body()


def gradients(layout: Layout) -> Body:
    """Return gradients of variables, all of the same value."""
    body = Body.zeros(layout)
    for array in body.values():
        array[...] = _GRADIENT
    return body


def initialize_table(client: "psworker.Client", rows: int) -> None:
    """Bring a table of zeros, and nothing else."""
    table = np.zeros((rows, ROW_NBYTES // 4), np.float32)
    client.initialize({"table": table}, tables=("table",))


def row_cycle(client: "psworker.Client", rows: int) -> Callable[[], None]:
    """Return what pulls rows of a table, and pushes gradients of the same ones.

    They are others in every cycle.
    """
    dice = np.random.default_rng(0)
    draws = cycle(
        [np.sort(dice.choice(rows, _ROWS, replace=False)) for _ in range(_DRAWS)]
    )
    gradients = np.full((_ROWS, ROW_NBYTES // 4), _GRADIENT, np.float32)

    def pull_and_push() -> None:
        ids = next(draws)
        snapshot = client.pull_body(rows={"table": ids})
        client.push({"table": psworker.Rows(ids, gradients)}, snapshot)

    return pull_and_push


def train(
    client: "psworker.Client",
    task: "psworker.Task",
    report: Callable[[Any], None],
    **options: Any,
) -> None:
    """Run the worker's loop until the batches end."""
    from psworker import loop

    loop.train(client, task, psworker.Shard(), report=report, **options)


def staleness(address: str) -> Mapping[int, int]:
    """Return how many pushes a server has judged of each staleness, in steps."""
    from psserver import admin

    return admin.status(address).staleness


def durability(address: str) -> Durability:
    """Return what a server has kept."""
    from psserver import admin

    return admin.status(address).durability


def save(address: str) -> None:
    """Have a server save a checkpoint."""
    from psserver import admin

    admin.save_checkpoint(address)


def rule_step(rule: str, nbytes: int, count: int) -> Callable[[], None]:
    """Return what applies a rule once to variables of so many bytes."""
    from psserver.rules import CompiledRule

    layout = Layout.of(variables(nbytes, count))
    compiled = CompiledRule(resolve(rule), layout)
    state, steps = compiled.start(Body.zeros(layout).freeze()), gradients(layout)

    def apply() -> None:
        nonlocal state
        state = compiled.apply(state, steps, None)

    return apply


def resolve(rule: str) -> Any:
    """Make a rule as the server's command does."""
    from psserver import rulespec

    return rulespec.resolve(_factory(rule), RULES[rule])


def _factory(rule: str) -> str:
    return "sgd" if rule == "momentum" else rule
