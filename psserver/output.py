"""A server's figures for scripts: a JSON object a line, or rows of CSV."""

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from psserver import admin
from psserver.metrics.recorder import Sample, sample
from pswire.credentials import ANONYMOUS, Credentials
from pswire.errors import ParameterServerError

COLUMNS = (
    *("time", "incarnation", "step", "scope", "worker", "state", "received", "applied"),
    *("dropped", "duplicate", "rejected", "drop_rate", "pushes_per_s", "loss"),
    *("consecutive_drops", "longest_drops", "last_seen_s"),
    *("durability", "saved_step", "saved_s", "saves", "failures", "corrupt"),
)
"""Of the CSV; what has no meaning for a row is empty there."""


def write(
    address: str,
    file: TextIO,
    credentials: Credentials = ANONYMOUS,
    *,
    style: str,
    follow: bool,
) -> None:
    """Write a server's figures, once or once a second.

    Args:
        address: The server's.
        file: Where to; once nobody reads it any more, this returns.
        credentials: What to show the server, and by what to know it.
        style: json or csv.
        follow: Whether to go on, also after the server has been away.

    Raises:
        ParameterServerError: The server has not answered the first time.
    """
    samples = (_follow if follow else _once)(address, credentials)
    try:
        put = _csv(file) if style == "csv" else _json_lines(file)
        for each in samples:
            put(each)
            file.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def rows(taken: Sample) -> Iterator[dict[str, Any]]:
    """Return a sample as rows: the total, each worker, and what is no worker's."""
    common = {name: taken[name] for name in ("time", "incarnation", "step")}
    kept = taken["durability"]
    total = {**taken, **kept, "durability": kept["mode"]}
    parts = [("total", total), *(("worker", each) for each in taken["workers"])]
    for scope, part in (*parts, ("unjoined", taken["unjoined"])):
        named = {"scope": scope, "worker": part["name"] if scope == "worker" else None}
        rejected = sum(part["rejected"].values())
        yield {**part, **common, **named, "rejected": rejected}


def _once(address: str, credentials: Credentials) -> Iterator[Sample]:
    yield sample(admin.status(address, credentials), time.time())


def _follow(address: str, credentials: Credentials) -> Iterator[Sample]:
    is_told = False
    for found in admin.follow(address, credentials):
        if not isinstance(found, ParameterServerError):
            is_told = False
            yield sample(found, time.time())
        elif not is_told:
            print(f"{found}; going on once it answers", file=sys.stderr, flush=True)
            is_told = True


def _json_lines(file: TextIO) -> Callable[[Sample], None]:
    return lambda taken: print(json.dumps(taken), file=file)


def _csv(file: TextIO) -> Callable[[Sample], None]:
    table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    header = iter([dict(zip(COLUMNS, COLUMNS, strict=True))])  # Once there is data.
    return lambda taken: table.writerows([*header, *rows(taken)])
