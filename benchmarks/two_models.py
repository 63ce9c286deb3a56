"""A child that serves two models, as two servers of one process."""

import psserver
from benchmarks import product
from pswire.memory import keep_freed_memory
from pswire.signals import interruptible


def main() -> None:
    """Print an address a line, and serve until interrupted."""
    keep_freed_memory()

    def start() -> psserver.Server:
        return psserver.Server(product.resolve("sgd"), max_staleness=None, port=0)

    with interruptible(), start() as first, start() as second:
        for server in (first, second):
            print(f"listening on {server.address}", flush=True)
        try:
            first.wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
