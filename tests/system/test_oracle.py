"""A long, seeded, sequential run beside a model of it in a few lines of numpy."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from pswire.values import Reason, Snapshot, Verdict

Arrays = dict[str, npt.NDArray[Any]]

RATE = 0.5  # A power of two: the product is exact, fused with the sum or not.
WORKERS = 7


@dataclass
class Oracle:
    """What a server of plain SGD should do, one push after another."""

    limit: int | None
    variables: Arrays
    step: int = 0
    staleness: Counter[int] = field(default_factory=Counter)

    def push(self, gradients: Arrays, step_read: int) -> Verdict:
        """Decide, apply and count one push."""
        age = self.step - step_read
        self.staleness[age] += 1
        if self.limit is not None and age > self.limit:
            return Verdict(
                applied=False, staleness=age, step=self.step, reason=Reason.STALE
            )
        self.step += 1
        for name, gradient in gradients.items():
            self.variables[name] = self.variables[name] - np.float32(RATE) * gradient
        return Verdict(applied=True, staleness=age, step=self.step)

    def check(self, snapshot: Snapshot[Any]) -> None:
        """Compare a snapshot bit for bit."""
        assert snapshot.step == self.step
        assert list(snapshot.params) == list(self.variables)
        for name, array in self.variables.items():
            assert snapshot.params[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("limit", "pushes", "seed"),
    [
        (0, 1250, 1),
        (1, 1000, 2),
        (4, 1500, 3),
        (None, 1000, 4),
        (-1, 150, 5),
        (2**63 - 1, 100, 6),
    ],
)
def test_every_verdict_and_every_bit_is_the_oracles(
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    limit: int | None,
    pushes: int,
    seed: int,
) -> None:
    """10,000 pushes of all runs and ways, by workers that lag behind as luck has it."""
    order, numbers = random.Random(seed), np.random.default_rng(seed)
    variables: Arrays = {
        "bias": np.asarray(numbers.standard_normal((), np.float32)),
        "kernel": numbers.standard_normal((3, 2), np.float32),
        "tokens": np.arange(3, dtype=np.int32),
    }
    oracle = Oracle(limit, dict(variables))
    server = start_server(optax.sgd(RATE), max_staleness=limit)
    clients = [connect(server.address, name=f"{i}") for i in range(WORKERS)]
    clients[0].initialize(variables)
    held = [client.pull() for client in clients]
    own: list[list[Verdict]] = [[] for _ in clients]

    for _ in range(pushes):
        worker = order.randrange(WORKERS)
        client = clients[worker]
        if order.random() < 0.4:
            held[worker] = client.pull()
            oracle.check(held[worker])
        gradients = {
            name: np.asarray(numbers.standard_normal(variables[name].shape, np.float32))
            for name in ("bias", "kernel")
        }
        expected = oracle.push(gradients, held[worker].step)
        if order.random() < 0.25:
            verdict, held[worker] = client.exchange(gradients, held[worker])
            oracle.check(held[worker])
        else:
            verdict = client.push(gradients, held[worker])
        assert verdict == expected
        own[worker].append(verdict)

    oracle.check(clients[0].pull())
    status = server.status()
    assert status.staleness == oracle.staleness
    assert [(row.counts.applied, row.counts.dropped) for row in status.workers] == [
        (sum(v.applied for v in verdicts), sum(not v.applied for v in verdicts))
        for verdicts in own
    ]
