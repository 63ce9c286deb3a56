"""Ctrl-C and SIGTERM, treated alike."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """Make the first SIGINT or SIGTERM a KeyboardInterrupt, the second the end.

    The second one ends the process at once, with 128 and the signal's number: gRPC's
    threads may hold up an ordinary exit for as long as a call runs.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, leave)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
