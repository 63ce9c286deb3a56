"""The cases of the TensorFlow 1 optimizer that this server succeeds."""

from collections.abc import Callable

import numpy as np
import pytest

import psserver
import psworker
from pswire.values import Reason, Verdict

# workers, limit, step, drops, v0, v1, staleness of each push in order.
CASES = [
    (1, 0, 1, 0, 1.0, 2.0, [0]),
    (1, -1, 0, 1, 0.0, 1.0, [0]),
    (2, 0, 1, 1, 1.0, 2.0, [0, 1]),
    (2, 1, 2, 0, 2.0, 3.0, [0, 1]),
    (3, 0, 1, 2, 1.0, 2.0, [0, 1, 1]),
    (3, 1, 2, 1, 2.0, 3.0, [0, 1, 2]),
]


@pytest.mark.parametrize(
    ("workers", "limit", "step", "drops", "v0", "v1", "ages"),
    CASES,
    ids=[f"{case[0]} workers, limit {case[1]}" for case in CASES],
)
def test_workers_that_read_one_step_push_one_after_another(
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    workers: int,
    limit: int,
    step: int,
    drops: int,
    v0: float,
    v1: float,
    ages: list[int],
) -> None:
    """Step, drops, variables, verdicts and counters, for each case of the table."""
    server = start_server(max_staleness=limit)
    clients = [connect(server.address, name=f"worker-{i}") for i in range(workers)]
    clients[0].initialize({"v0": np.float32(0.0), "v1": np.float32(1.0)})
    snapshots = [client.pull() for client in clients]
    gradients = {"v0": np.float32(-1.0), "v1": np.float32(-1.0)}

    verdicts = [
        client.push(gradients, snapshot)
        for client, snapshot in zip(clients, snapshots, strict=True)
    ]

    assert [snapshot.step for snapshot in snapshots] == [0] * workers
    kept = range(1, workers - drops + 1)
    assert verdicts == [
        *(Verdict(applied=True, staleness=s - 1, step=s) for s in kept),
        *(
            Verdict(applied=False, staleness=step, step=step, reason=Reason.STALE)
            for _ in range(drops)
        ),
    ]
    assert [verdict.staleness for verdict in verdicts] == ages
    final = clients[0].pull()
    assert final.step == step
    assert final.params == {"v0": np.float32(v0), "v1": np.float32(v1)}
    status = server.status()
    assert (status.step, status.counts.applied, status.counts.dropped) == (
        step,
        workers - drops,
        drops,
    )
    assert status.counts.drop_rate == drops / workers
    assert [row.consecutive_drops for row in status.workers] == [
        int(not verdict.applied) for verdict in verdicts
    ]
