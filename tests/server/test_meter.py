"""How long pushes take, by a clock that the test moves."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import grpc
import numpy as np
import optax
import pytest

from psserver.calls import Calls
from psserver.metrics.meter import SECONDS, CallMeter, Meter
from psserver.service import ParameterServer
from psserver.store import Store
from psserver.timing import Timing
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Body
from pswire.errors import StepReadError
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader

HEADER = PushHeader(session="s", seq=1, generation="g", step_read=0, nbytes=0)


def ticking(*seconds: float) -> Callable[[], float]:
    """Make a clock that shows these, one after another."""
    times: Iterator[float] = iter(seconds)
    return lambda: next(times)


def timed(
    *seconds: float, served_at: float | None = None, held_s: float = 0.0
) -> Timing:
    """Make the timing of a push that waited for the lock between two of the times."""
    header = PushHeader("s", 1, "g", 0, 0, served_at=served_at, held_s=held_s)
    timing = Timing(header, ticking(*seconds), since=5.0)
    for _ in range(len(seconds) // 2):
        timing.ask()
        timing.enter()
    return timing


def initialized(**settings: Any) -> Store:
    """Make a store of 8 bytes, with a limit of 0, that session s of ann has joined."""
    limits = Limits(0, None, 2**20, 2**20)
    names: dict[str, Any] = {"rule_name": "sgd", "generation": "g", "incarnation": "i"}
    store = Store(optax.sgd(1.0), limits=limits, now=0.0, **names, **settings)
    store.join("ann", "s", 0.0)
    layout = Layout.of({"w": np.zeros(2, np.float32)})
    store.initialize("s", layout, Body.zeros, 0.0)
    return store


def test_a_push_s_age_is_parted_into_computing_travelling_and_waiting() -> None:
    """Served at 10, held for 4; waits from 15 to 16, and from 18 to 20."""
    timing = timed(15.0, 16.0, 18.0, 20.0, served_at=10.0, held_s=4.0)

    assert (timing.held_s, timing.wire_s, timing.waited_s) == (4.0, 3.0, 3.0)
    assert timing.judged_at == 20.0


def test_a_rule_that_runs_is_timed() -> None:
    """And one that does not is not."""
    ran = []
    timing = Timing(HEADER, ticking(1.0, 2.0, 3.0, 7.5), since=0.0)
    timing.ask()
    timing.enter()
    before = timing.apply_s

    timing.apply(lambda: ran.append(True))

    assert (before, timing.apply_s, ran) == (None, 4.5, [True])
    assert timing.judged_at == 7.5


@pytest.mark.parametrize(
    ("served_at", "held_s"),
    [
        (None, 1.0),
        (-1.0, 1.0),
        (11.0, 0.0),
        (9.0, 1.5),
        (9.0, -1.0),
        (9.0, float("nan")),
        (float("nan"), 0.0),
        (float("-inf"), 0.0),
        (5.0, float("inf")),
        (4.9, 0.0),
        (0.0, 0.0),
    ],
)
def test_what_a_worker_cannot_have_seen_is_not_measured(
    served_at: float | None, held_s: float
) -> None:
    """Nor what left before the server's start; the wait, which it sees, still is."""
    meter = Meter()

    meter.judged(timed(10.0, 10.5, served_at=served_at, held_s=held_s))

    parts = meter.read().pushes
    assert {part: sum(each.counts) for part, each in parts.items()} == {
        "compute": 0,
        "wire": 0,
        "lock": 1,
        "apply": 0,
    }


def test_a_store_tells_where_the_time_of_its_pushes_went() -> None:
    """By a clock that is a second on whenever it is asked.

    An applied push waits twice, one that its header condemns once, a rejected one and
    a retry are not measured.
    """
    meter = Meter()
    store = initialized(on_judged=meter.judged)

    def push(seq: int, step_read: int = 0, **settings: Any) -> None:
        clock = ticking(*range(1, 9))
        header = PushHeader("s", seq, "g", step_read, 8, **settings)
        store.push(header, Body.zeros, 0.0, clock=clock)

    push(1, served_at=0.0, held_s=0.5)
    push(1, served_at=0.0, held_s=0.5)
    push(2)
    with pytest.raises(StepReadError):
        push(3, step_read=9, served_at=0.0)

    parts = meter.read().pushes
    assert {part: (sum(p.counts), p.total_s) for part, p in parts.items()} == {
        "compute": (1, 0.5),
        "wire": (1, 4 - 2 - 0.5),
        "lock": (2, 2 + 1),
        "apply": (1, 1),
    }


@pytest.mark.parametrize(
    ("said", "is_active", "code"),
    [
        (None, True, "OK"),
        (None, False, "CANCELLED"),
        (grpc.StatusCode.ABORTED, False, "ABORTED"),
    ],
)
def test_a_call_counts_by_how_it_ended(
    said: grpc.StatusCode | None, is_active: bool, code: str
) -> None:
    """A caller who goes away in the midst of a stream has not been answered."""
    store, meter = initialized(), Meter()
    service = ParameterServer(Calls(store), meter)
    called = mock.Mock(method="/ps.v1.ParameterServer/PullStream")
    handler: Any = service.handlers().service(called)
    context = mock.Mock()
    context.code.return_value = said
    context.is_active.return_value = is_active

    pieces = handler.unary_stream(pb.PullRequest(), context)
    next(pieces)
    pieces.close()

    assert [*meter.read().calls] == [("grpc", "PullStream", code)]


def test_durations_are_counted_by_their_length() -> None:
    """A bound belongs to its bucket; what is longer than all is kept too."""
    meter = Meter()
    seconds = [0.0, SECONDS[0], SECONDS[0] * 1.01, SECONDS[-1], SECONDS[-1] * 2]

    for each in seconds:
        meter.answered("grpc", "Pull", "OK", each)

    (durations,) = meter.read().calls.values()
    assert durations.counts == (2, 1, *(0,) * (len(SECONDS) - 3), 1, 1)
    assert durations.total_s == pytest.approx(sum(seconds))


def test_many_threads_lose_no_count() -> None:
    """All calls and all bytes are there."""
    meter = Meter()
    call = CallMeter(meter, "grpc", "Push")
    receive, send = call.receiving(bytes.decode), call.sending(str.encode)

    def work(_: int) -> None:
        for _ in range(700):
            assert send(receive(b"abc")) == b"abc"
            call.answered("OK", call.now())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    readings = meter.read()
    assert readings.received == readings.sent == {("grpc", "Push"): 8400}
    assert sum(readings.calls["grpc", "Push", "OK"].counts) == 2800
