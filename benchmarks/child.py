"""Runs a module as a child of the benchmark, which keeps the memory that it frees."""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

from benchmarks import namespaces
from pswire.heap import keep_freed_memory

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run `python -m benchmarks.child PARENT NAMESPACE MODULE` as `python -m MODULE`.

    PARENT is a process; NAMESPACE is a path, or "" for the namespace of the parent.
    """
    _, parent, namespace, *sys.argv = sys.argv
    _settle(int(parent), namespace)
    keep_freed_memory()  # As the commands do, before numpy is imported.
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _settle(parent: int, namespace: str) -> None:
    """Go to a namespace; end with the parent, and before any other process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # It ended before this process could be told of it.
        sys.exit("expected its parent to run, got its end")
    # Where memory runs out, what goes is to be the benchmark.
    Path("/proc/self/oom_score_adj").write_text("1000")
    if namespace:
        namespaces.enter(namespace)


if __name__ == "__main__":
    main()
