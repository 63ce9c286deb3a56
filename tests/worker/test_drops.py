"""What a worker is told of many drops in a row."""

import logging
from typing import Any

import numpy as np
import pytest

PARAMS = {"w": np.ones(2, np.float32)}


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([False] * 19, []),
        ([False] * 20, [20]),
        ([False] * 50, [20]),
        ([*[False] * 19, True] * 3, []),
        ([*[False] * 19, True, *[False] * 20], [40]),
        ([*[False] * 20, True] * 3, [20]),
    ],
    ids=["19", "20", "50", "19 at a time", "20 at last", "20 at a time"],
)
def test_a_worker_is_told_once_that_all_it_does_is_dropped(
    offline: Any, caplog: pytest.LogCaptureFixture, answers: list[bool], told: list[int]
) -> None:
    """At the twentieth drop in a row, with what could be done about it."""
    client, recorder = offline(PARAMS, answers=answers)
    recorder.step = 30
    when = []

    for number in range(1, len(answers) + 1):
        client.push(PARAMS, step_read=1)
        if caplog.records:
            when.append(number)
            (record,) = caplog.records
            assert record.levelno == logging.WARNING
            message = record.getMessage()
            caplog.clear()

    assert when == told
    if told:
        assert message.startswith("the last 20 pushes were all dropped, the last one")
        for advice in ("--max-staleness", "psserver set", "smaller", "the same data"):
            assert advice in message
