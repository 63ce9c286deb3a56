"""A channel loses as many calls as its plan says, of the methods that it names."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import grpc
import pytest

from kit.chaos import ANSWERED, FLIGHT, REPLY, REQUEST, Chaos


class Details(NamedTuple):
    """Of a call, as gRPC has them."""

    method: str
    timeout: float | None = None


class Server:
    """Answers calls; those that leave it little time it counts, and lets expire."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.expired = 0

    def __call__(self, details: Details, request: Any) -> Any:
        if details.timeout is not None:
            self.expired += 1
            raise grpc.RpcError("deadline exceeded")
        self.answered[details.method] += 1
        return SimpleNamespace(result=lambda: None)


def fates(plan: str, methods: Sequence[str], seed: int = 0) -> list[str]:
    """Make calls; return what their callers see, but for what the plan leaves alone."""
    chaos, server, failed = Chaos(plan, seed), Server(), 0
    for method in methods:
        try:
            chaos.intercept_unary_unary(server, Details(f"/service/{method}"), None)
        except grpc.RpcError:
            failed += 1

    seen = Counter(chaos.fates)
    assert failed == len(chaos.fates) - seen[ANSWERED]
    assert server.expired == seen[FLIGHT]
    assert server.answered.total() == len(methods) - seen[REQUEST] - seen[FLIGHT]
    return chaos.fates


def test_calls_fare_as_the_plan_says() -> None:
    """Of the 2,000 with this seed: within a tenth of their shares."""
    seen = Counter(fates("Push=-1:10%:20%:30%", ["Push"] * 2000))

    shares = {REQUEST: 200, REPLY: 400, FLIGHT: 600, ANSWERED: 800}
    assert seen == pytest.approx(shares, rel=0.1)


def test_a_plan_stops_after_as_many_failures_as_it_allows() -> None:
    """Each method has its own count; one that is not named never fails."""
    calls = ["Push", "Pull", "Join"] * 100

    seen = fates("Push=3:50:0:50,Pull=0:100:0:0", calls)

    assert len(seen) == 200
    assert sum(fate != ANSWERED for fate in seen) == 3


def test_the_same_seed_chooses_the_same() -> None:
    """And another one something else."""
    plan, calls = "Push=-1:25:25:25", ["Push"] * 50

    assert fates(plan, calls, 1) == fates(plan, calls, 1) != fates(plan, calls, 2)
