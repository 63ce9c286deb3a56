"""Many workers push gradients of one step at the same moment."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from pswire.values import Reason, Snapshot, Verdict

WORKERS = 64
ROUNDS = 25
TIMEOUT_S = 30.0


@pytest.mark.parametrize("limit", [0, 1, 3, 15])
def test_of_pushes_released_at_once_just_the_limit_and_one_are_applied(
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    in_parallel: Callable[[Sequence[Callable[[], Any]]], list[Any]],
    limit: int,
) -> None:
    """Each round's 64 verdicts are those of the pushes in some serial order."""
    server = start_server(max_staleness=limit)
    clients = [connect(server.address) for _ in range(WORKERS)]
    clients[0].initialize({"w": np.zeros(2, np.float32)})
    gradient = {"w": np.array([-1.0, 1.0], np.float32)}
    rounds: list[Snapshot[Any]] = []
    # The last to arrive pulls for all, once every push of the round before is done.
    release = threading.Barrier(WORKERS, lambda: rounds.append(clients[0].pull()))

    def race(client: psworker.Client) -> list[Verdict]:
        verdicts = []
        for _ in range(ROUNDS):
            release.wait(TIMEOUT_S)
            verdicts.append(client.push(gradient, rounds[-1]))
        return verdicts

    raced = in_parallel([partial(race, client) for client in clients])

    for number, snapshot in enumerate(rounds):
        start, end = number * (limit + 1), (number + 1) * (limit + 1)
        assert snapshot.step == start
        assert snapshot.params["w"].tolist() == [start, -start]
        stale = Verdict(
            applied=False, staleness=limit + 1, step=end, reason=Reason.STALE
        )
        assert Counter(verdicts[number] for verdicts in raced) == {
            stale: WORKERS - limit - 1,
            **{
                Verdict(applied=True, staleness=age, step=start + age + 1): 1
                for age in range(limit + 1)
            },
        }
    final = clients[0].pull()
    assert final.step == ROUNDS * (limit + 1)
    assert final.params["w"].tolist() == [final.step, -final.step]


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_push_is_as_stale_as_it_is_once_all_of_it_has_come(
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    join_raw: Callable[..., Any],
    send_half: Callable[..., tuple[Any, Callable[[], None]]],
    limit: int,
) -> None:
    """Its header was fresh; two pushes overtake it while its body is on the way."""
    server = start_server(max_staleness=limit)
    client = connect(server.address)
    client.initialize({"A": np.zeros(2, np.float32)})
    gradient = np.array([-1.0, 1.0], np.float32)
    stub, make = join_raw(server.address, "s")

    slow, send_rest = send_half(stub, make(1, gradient, step_read=0))
    for _ in range(2):
        assert client.push({"A": gradient}, client.pull()).applied
    send_rest()
    verdict = Verdict.from_proto(slow.result(TIMEOUT_S))

    kept = limit == 2
    assert verdict == Verdict(
        applied=kept,
        staleness=2,
        step=2 + kept,
        reason=None if kept else Reason.STALE,
    )
    assert client.pull().params["A"].tolist() == [2 + kept, -2 - kept]
    assert server.status().staleness == {0: 2, 2: 1}
