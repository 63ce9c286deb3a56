"""Checkpoints as a person reads them."""

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any

from rich.console import Group, RenderableType

from psserver import printed
from psserver.durability.checkpoints import Checkpoints
from psserver.durability.errors import DataDirectoryError
from psserver.durability.manifest import Manifest
from pswire.counts import WorkerStatus
from pswire.display import summary
from pswire.status import limited

_COLUMNS = ("name", "step", "saved", "nbytes", "generation", "rule", "state")
_COUNTS = ("applied", "dropped", "duplicate", "rejected")
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}

GOOD = "good"
"""The state of a checkpoint that can be used."""


def rows(checkpoints: Checkpoints) -> Iterator[dict[str, Any]]:
    """Read each checkpoint whole, oldest first, and say what it is.

    The "state" of one that is not `GOOD` is "corrupt", or "unreadable" if nobody knows.
    What it does not tell is None; "problem" is what is wrong with it.
    """
    for name in checkpoints.names():
        row: dict[str, Any] = dict.fromkeys((*_COLUMNS, "problem")) | {"name": name}
        try:
            manifest = checkpoints.verify(name)
            kept = manifest.checkpoint
            row |= {
                **{"step": kept.step, "generation": kept.generation, "rule": kept.rule},
                **{"saved": manifest.saved, "nbytes": checkpoints.nbytes(name)},
                "state": GOOD,
            }
        except OSError as error:
            if name not in checkpoints.names():
                continue  # A running server has just pruned it.
            row |= {"state": _state(error), "problem": str(error)}
        yield row


def good_before(checkpoints: Checkpoints, name: str) -> str | None:
    """Return the newest one that is good of those before another; None: none is."""
    before = [*takewhile(lambda each: each != name, checkpoints.names())]
    for each in reversed(before):
        with suppress(OSError):
            checkpoints.verify(each)
            return each
    return None


def table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Draw `rows`, and below them what is wrong."""
    listed = [*rows]
    problems = [printed.text(row["problem"]) for row in listed if row["problem"]]
    cells = ([row[column] for column in _COLUMNS] for row in listed)
    return Group(printed.table(_COLUMNS, cells), *problems)


def page(name: str, manifest: Manifest) -> RenderableType:
    """Draw what a checkpoint is: its settings, its arrays, its workers."""
    kept = manifest.checkpoint
    judging = limited(kept.max_staleness, kept.staleness_policy)
    written_by = ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
    head = (
        f"{name} of {kept.server}" if kept.server else name,
        f"step {kept.step}, rule {kept.rule}, {judging}, generation {kept.generation}",
        f"saved {manifest.saved} by {written_by}",
        f"pushes: {summary.outcomes(kept.counters.total.freeze())}",
        "",
    )
    arrays = ((s.name, s.dtype.name, str(s.shape)) for s in manifest.digests)
    workers = map(_worker, kept.counters.workers(now=0.0, uptime_s=0.0))
    return Group(
        *map(printed.text, head),
        printed.table(("array", "dtype", "shape"), arrays),
        "",
        printed.table(("worker", *_COUNTS), workers),
    )


def _state(error: OSError) -> str:
    is_damage = isinstance(error, DataDirectoryError) or error.errno in _MISSING
    return "corrupt" if is_damage else "unreadable"


def _worker(row: WorkerStatus) -> Iterable[Any]:
    counts = row.counts
    rejected = sum(counts.rejected.values())
    return row.name, counts.applied, counts.dropped, counts.duplicate, rejected
