"""What a worker says while it waits for its turn: by a clock of the test's own."""

import logging

import pytest

from psworker.turns import Queueing, Wait


@pytest.mark.parametrize(
    ("waits_for", "told"), [("ann", "ann"), ("", "no worker in particular")]
)
def test_a_long_wait_is_told_after_ten_seconds_and_then_once_a_minute(
    waits_for: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And for whom it is now; a short wait is not worth a word."""
    caplog.set_level(logging.WARNING, "psworker")
    times = [100.0]
    queueing = Queueing("bob", clock=lambda: times[-1])

    for second in range(1, 141):
        times.append(100.0 + second)
        queueing.note(Wait(1.0, waits_for))

    assert caplog.messages == [
        f"worker bob has waited {waited} s for its turn to pull, now for {told}"
        for waited in (10, 70, 130)
    ]
