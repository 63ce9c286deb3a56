"""What a push says of the age of its snapshot."""

import pytest

from pswire._generated import parameter_server_pb2 as pb
from psworker.arrivals import Arrivals


class Clock:
    """Shows what the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Stand still until the test moves it."""
    return Clock()


def snapshot(step: int, served_at: float, generation: str = "g") -> pb.SnapshotHeader:
    """Make the header that a snapshot came with."""
    return pb.SnapshotHeader(generation=generation, step=step, served_at=served_at)


def stamped(arrivals: Arrivals, step: int, generation: str = "g") -> pb.PushHeader:
    """Stamp a push of a gradient of that step."""
    header = pb.PushHeader(generation=generation, step_read=step)
    arrivals.stamp(header)
    return header


def test_a_push_tells_when_its_snapshot_left_and_how_long_it_was_held(
    clock: Clock,
) -> None:
    """Of the snapshot that it was computed from, not of the newest."""
    arrivals = Arrivals(clock)
    for clock.now, step, served_at in ((10.0, 3, 500.0), (12.0, 4, 502.5)):
        arrivals.note(snapshot(step, served_at))
    clock.now = 15.0

    older, newer = (stamped(arrivals, step) for step in (3, 4))

    assert (older.served_at, older.held_s) == (500.0, 5.0)
    assert (newer.served_at, newer.held_s) == (502.5, 3.0)


def test_a_snapshot_that_is_still_the_newest_is_as_good_as_new(clock: Clock) -> None:
    """A server that says so again has seen no step in between."""
    arrivals = Arrivals(clock)
    for clock.now, served_at in ((10.0, 500.0), (12.0, 502.5)):
        arrivals.note(snapshot(3, served_at))
    clock.now = 13.0

    header = stamped(arrivals, 3)

    assert (header.served_at, header.held_s) == (502.5, 1.0)


@pytest.mark.parametrize(("step", "generation"), [(4, "g"), (3, "h")])
def test_of_an_unknown_snapshot_nothing_is_said(
    clock: Clock, step: int, generation: str
) -> None:
    """A caller may keep the step itself, from elsewhere."""
    arrivals = Arrivals(clock)
    arrivals.note(snapshot(3, 500.0))

    header = stamped(arrivals, step, generation)

    assert not header.HasField("served_at")


def test_only_the_newest_are_kept(clock: Clock) -> None:
    """A run of a million steps does not fill the memory."""
    arrivals = Arrivals(clock)

    for step in range(100):
        arrivals.note(snapshot(step, 1.0))

    known = [s for s in range(100) if stamped(arrivals, s).HasField("served_at")]
    assert known == [*range(84, 100)]
