"""The child's end of the pipe: commands come in, answers go out, a JSON line each."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def obey(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Run commands, by name and keyword arguments, until the input ends.

    What a command raises is answered too; the next one may still do.
    """
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": commands[request.pop("do")](**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def timed(action: Callable[[], object], seconds: float, at_least: int) -> list[float]:
    """Repeat an action, and return how long each time took, in seconds.

    The first time does not count: others have had the caches since the last turn.

    Args:
        action: What to do.
        seconds: No new repetition begins later than this.
        at_least: But there are so many in any case.
    """
    action()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < at_least or time.perf_counter() < begin + seconds:
        times.append(elapsed(action))
    return times


def elapsed(action: Callable[[], object]) -> float:
    """Return how long an action takes, in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
