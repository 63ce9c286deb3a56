"""A child that is one worker after another."""

import time
from typing import Any

import psworker
from benchmarks.commands import obey
from benchmarks.study.task import make_task
from examples import digits
from psworker import loop


class Worker:
    """One session at a time: joined in peace, before the clock runs."""

    def join(self, address: str, name: str) -> None:
        """Join a server, and see that it has variables."""
        self._client = psworker.connect(address, name=name)
        self._client.initialize(digits.init())

    def train(
        self,
        index: int,
        count: int,
        seed: int,
        slowdown: int,
        begin: float,
        end: float,
        training: dict[str, Any],
    ) -> None:
        """Train, and leave.

        Args:
            index: Which part of the data to read.
            count: Of how many.
            seed: See `make_task`.
            slowdown: See there.
            begin: When to begin, by `time.monotonic`, in seconds.
            end: See `make_task`.
            training: Options of the loop.
        """
        task = make_task(seed, slowdown, end)
        with self._client as client:
            time.sleep(max(0.0, begin - time.monotonic()))
            loop.train(client, task, psworker.Shard(index, count), **training)


if __name__ == "__main__":
    worker = Worker()
    obey({"join": worker.join, "train": worker.train})
