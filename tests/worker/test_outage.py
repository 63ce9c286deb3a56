"""How long, and how often, a worker goes on trying: by a clock of the test's own."""

import random
from itertools import pairwise
from types import SimpleNamespace

import pytest

from pswire.errors import ServerUnavailableError
from psworker.outage import Notices, Outage

SEED = 3
AWAY = ServerUnavailableError("127.0.0.1:7070: connection refused")


class Clock:
    """Tells the time that has been waited."""

    def __init__(self) -> None:
        self.now = 0.0

    def attempts(self, outage: Outage) -> list[float]:
        """Return when a call is attempted that never succeeds."""
        times = [self.now]
        while True:
            try:
                self.now += outage.next_pause_s(AWAY)
            except ServerUnavailableError:
                return times
            times.append(self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Make the time pass that is waited, and the jitter the seed's."""
    clock = Clock()
    told = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("psworker.outage.time", told)
    monkeypatch.setattr("psworker.outage.random", random.Random(SEED))
    return clock


@pytest.mark.parametrize("patience_s", [0.0, 1.0, 5.0, 60.0])
def test_an_outage_is_survived_up_to_its_last_moment(
    clock: Clock, patience_s: float
) -> None:
    """The last attempt is made when patience ends; none is two seconds late."""
    times = clock.attempts(Outage("127.0.0.1:7070", patience_s, Notices()))

    assert times[-1] == pytest.approx(patience_s)
    assert all(0 < after - before <= 2 for before, after in pairwise(times))


@pytest.mark.parametrize("away_s", [1.0, 5.0, 20.0])
def test_64_workers_do_not_come_back_to_their_server_at_once(
    clock: Clock, away_s: float
) -> None:
    """All lost it at one moment; within 100 ms comes no more than half of them."""
    arrivals = []
    for _ in range(64):
        clock.now = 0.0
        times = clock.attempts(Outage("127.0.0.1:7070", 60.0, Notices()))
        arrivals.append(next(time for time in times if time >= away_s))

    busiest = max(sum(a <= b < a + 0.1 for b in arrivals) for a in arrivals)
    assert busiest <= 32
    assert max(arrivals) <= away_s + 2


def test_two_calls_of_a_connection_that_wait_say_so_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Every three seconds, as one call alone does; another connection says it too."""
    notices = Notices()
    calls = [Outage("one", 60.0, notices) for _ in range(2)]
    calls.append(Outage("other", 60.0, Notices()))

    for clock.now in range(10):
        for call in calls:
            call.next_pause_s(AWAY)

    told = [message.partition(": ")[0] for message in caplog.messages]
    begins = "waiting for the parameter server at"
    assert told == [
        f"{begins} {name}, {seconds} of 60 s"
        for seconds in (3, 6, 9)
        for name in ("one", "other")
    ]
