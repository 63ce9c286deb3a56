"""Runs a module as a child of the benchmark, which keeps the memory that it frees."""

import runpy
import sys

from pswire.heap import keep_freed_memory


def main() -> None:
    """Run `python -m benchmarks.child MODULE` as `python -m MODULE`."""
    keep_freed_memory()  # As the commands do, before numpy is imported.
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
