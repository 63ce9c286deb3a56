"""The history in memory: the whole run, whatever its length, in a bounded room."""

from itertools import pairwise
from typing import Any

import pytest

from psserver.metrics.history import History


def sample(second: int) -> dict[str, Any]:
    """Return what a recorder shows, as far as it matters here."""
    return {
        "time": 100.0 + second,
        "step": 3 * second,
        "applied": 3 * second,
        "dropped": second,
        "loss": None if second % 2 else 1.0 / (1 + second),
        "workers": [],
    }


def kept(samples: int, capacity: int) -> dict[str, Any]:
    """Return the history of so many samples, one a second."""
    history = History("born", capacity=capacity)
    for second in range(samples):
        history.write(sample(second))
    history.close()
    return history.to_json()


def test_a_history_begins_empty() -> None:
    """Every column is there from the start."""
    assert kept(0, capacity=4) == {
        "incarnation": "born",
        **{"time": [], "step": [], "applied": [], "dropped": [], "loss": []},
    }


def test_a_short_run_is_kept_whole() -> None:
    """All columns have a value for each sample."""
    assert kept(3, capacity=4) == {
        "incarnation": "born",
        "time": [100.0, 101.0, 102.0],
        "step": [0, 3, 6],
        "applied": [0, 3, 6],
        "dropped": [0, 1, 2],
        "loss": [1.0, None, 1 / 3],
    }


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        (4, [0, 1, 2, 3]),
        (5, [0, 2, 4]),
        (8, [0, 2, 4, 6]),
        (9, [0, 4, 8]),
        (16, [0, 4, 8, 12]),
        (17, [0, 8, 16]),
    ],
)
def test_a_full_history_keeps_every_second_sample(
    samples: int, seconds: list[int]
) -> None:
    """From the first to nearly the last, always equally far apart."""
    history = kept(samples, capacity=4)

    assert history["time"] == [100.0 + second for second in seconds]
    assert history["dropped"] == seconds


def test_a_day_takes_no_more_room_than_an_hour() -> None:
    """At a sample a second, with the room that a server has."""
    history = History("born")
    for second in range(24 * 3600):
        history.write(sample(second))

    times = history.to_json()["time"]

    assert 600 <= len(times) <= 1200
    assert times[0] == 100.0
    assert times[-1] >= 100.0 + 24 * 3600 - 2 * (times[1] - times[0])
    assert len({after - before for before, after in pairwise(times)}) == 1
