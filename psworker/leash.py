"""Runs a command that ends when the process that started it does.

`python -m psworker.leash FD MODULE ARGUMENTS` runs `python -m MODULE ARGUMENTS` in this
very process. FD is the reading end of a pipe whose writing end only the starter holds:
however the starter ends, even by SIGKILL, the pipe closes, and this process goes too.
"""

import os
import runpy
import signal
import sys
import threading
import time

from pswire.heap import keep_freed_memory

_GRACE_S = 5.0


def main() -> None:
    """Watch the pipe, and run the command."""
    # A group of its own: Ctrl-C in the terminal is for the starter, and what this
    # process starts in turn can be ended with it.
    os.setpgrp()
    keep_freed_memory()  # While there is but one thread.
    pipe, module = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=_watch, args=(pipe,), name="leash", daemon=True).start()
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch(pipe: int) -> None:
    os.read(pipe, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
