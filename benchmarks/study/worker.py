"""A child that is one worker after another."""

import time
from contextlib import suppress
from typing import Any

import psworker
from benchmarks.commands import obey
from benchmarks.study.task import make_task
from examples import digits
from psworker import loop


class _TimeIsUpError(Exception):
    """A worker has trained for long enough, whatever batches wait to come again."""


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
            end: When to end, likewise: with the next verdict.
            training: Options of the loop.
        """

        def end_in_time(progress: loop.Progress) -> None:
            if time.monotonic() >= end:
                raise _TimeIsUpError

        task, shard = make_task(seed, slowdown), psworker.Shard(index, count)
        with self._client as client, suppress(_TimeIsUpError):
            time.sleep(max(0.0, begin - time.monotonic()))
            loop.train(client, task, shard, report=end_in_time, **training)


if __name__ == "__main__":
    worker = Worker()
    obey({"join": worker.join, "train": worker.train})
