"""What happens to workers, as lines of the log."""

import logging
from typing import Any

from psserver.metrics.recorder import Sample
from pswire.status import WorkerState

_FACTS = ("drop_rate", "consecutive_drops", "recent_drops", "last_seen_s")

_log = logging.getLogger("psserver")


class WorkerNews:
    """A sink that logs when a worker's state has changed, and nothing else."""

    def __init__(self) -> None:
        self._states: dict[str, WorkerState] = {}

    def write(self, sample: Sample) -> None:
        states, self._states = self._states, {}  # Not of who is forgotten.
        for worker in sample["workers"]:
            name, now = worker["name"], worker["state"]
            self._states[name] = now
            # Who is silent at first has not called since before the server's start.
            is_silent = now == WorkerState.SILENT
            before = states.get(name, now if is_silent else WorkerState.ACTIVE)
            if now != before:
                _tell(worker, before)

    def close(self) -> None:
        pass


def _tell(worker: dict[str, Any], before: WorkerState) -> None:
    name = worker["name"]
    about = {"worker": name, **{fact: worker[fact] for fact in _FACTS}}
    match worker["state"], before:
        case WorkerState.STARVED, _:
            _log.warning(
                "worker %s is starved: of its last 20 pushes %d were dropped",
                *(name, worker["recent_drops"]),
                extra={"event": "worker_starved", **about},
            )
        case WorkerState.SILENT, _:
            _log.info(
                "worker %s has gone silent: its last call was %.0f s ago",
                *(name, worker["last_seen_s"]),
                extra={"event": "worker_silent", **about},
            )
        case _, WorkerState.STARVED:
            _log.info(
                "worker %s is no longer starved",
                name,
                extra={"event": "worker_recovered", **about},
            )
        case _:
            _log.info(
                "worker %s is back", name, extra={"event": "worker_back", **about}
            )
