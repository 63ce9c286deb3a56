"""How long pushes take, by a clock that the test moves."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from psserver.meter import SECONDS, CallMeter, Meter
from psserver.timing import Timing
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
    timing = Timing(header, ticking(*seconds))
    for _ in range(len(seconds) // 2):
        timing.ask()
        timing.enter()
    return timing


def test_a_push_s_age_is_parted_into_computing_travelling_and_waiting() -> None:
    """Served at 10, held for 4; waits from 15 to 16, and from 18 to 20."""
    timing = timed(15.0, 16.0, 18.0, 20.0, served_at=10.0, held_s=4.0)

    assert (timing.held_s, timing.wire_s, timing.waited_s) == (4.0, 3.0, 3.0)
    assert timing.judged_at == 20.0


def test_a_rule_that_runs_is_timed() -> None:
    """And one that does not is not."""
    ran = []
    timing = Timing(HEADER, ticking(1.0, 2.0, 3.0, 7.5))
    timing.ask()
    timing.enter()
    before = timing.apply_s

    timing.apply(lambda: ran.append(True))

    assert (before, timing.apply_s, ran) == (None, 4.5, [True])


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
        (0.0, float("inf")),
    ],
)
def test_what_a_worker_cannot_have_seen_is_not_measured(
    served_at: float | None, held_s: float
) -> None:
    """The wait, which the server itself sees, still is."""
    meter = Meter()

    meter.judged(timed(10.0, 10.5, served_at=served_at, held_s=held_s))

    parts = meter.read().pushes
    assert {part: sum(each.counts) for part, each in parts.items()} == {
        "compute": 0,
        "wire": 0,
        "lock": 1,
        "apply": 0,
    }


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
        for _ in range(500):
            assert send(receive(b"abc")) == b"abc"
            call.answered("OK", call.now())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    readings = meter.read()
    assert readings.received == readings.sent == {("grpc", "Push"): 6000}
    assert sum(readings.calls["grpc", "Push", "OK"].counts) == 2000
