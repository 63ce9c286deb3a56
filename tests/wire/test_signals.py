"""Ctrl-C and SIGTERM: the first is asked, the second is obeyed."""

import signal
import subprocess
import sys

import pytest

from pswire.signals import interruptible

# The thread holds up an ordinary exit for as long as its input stays open.
WAITING = """
import sys, threading
from pswire.signals import interruptible

threading.Thread(target=sys.stdin.read).start()
with interruptible():
    try:
        print("ready", flush=True)
        threading.Event().wait(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        threading.Event().wait(60)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_the_second_ends(
    first: signal.Signals, second: signal.Signals
) -> None:
    """At once, though a thread is still busy, and with 128 and the signal's number."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"

            process.send_signal(first)
            assert process.stdout.readline() == "interrupted\n"
            process.send_signal(second)

            assert process.wait(timeout=20) == 128 + second
        finally:
            process.kill()


def test_the_handlers_of_before_come_back() -> None:
    """Also after an interruption, which puts others in their place."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    with pytest.raises(KeyboardInterrupt, match=r"^$"), interruptible():
        signal.raise_signal(signal.SIGTERM)

    assert [signal.getsignal(number) for number in numbers] == before
