"""Values and their messages say the same, and statuses add up."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from pswire.counts import Counts, WorkerStatus
from pswire.layout import ArraySpec, Layout
from pswire.status import Durability, Limits, Status
from pswire.values import PushHeader, Reason, Verdict

LIMITS = Limits(
    max_staleness=4,
    max_grad_norm=1.5,
    max_model_nbytes=2**40,
    max_unary_nbytes=4,
    staleness_policy="hinge:10,4",
)
COUNTS = Counts(6, 2, 3, {"NON_FINITE": 1, "STEP_READ": 4}, snapshot_gone=1)
WORKERS = (
    WorkerStatus(
        name="a",
        counts=COUNTS,
        consecutive_drops=2,
        last_seen_s=0.12345,
        longest_drops=3,
        pushes_per_s=0.66666,
        loss=0.25,
        staleness_buckets=(4, *(0,) * 14, 4),
        staleness_sum=1000,
        shard="3/16",
        recent_drops=2,
        waiting=True,
        waited_s=1.23456,
    ),
    WorkerStatus(name="b", counts=Counts(), consecutive_drops=0, last_seen_s=2.0),
)
LAYOUT = Layout((ArraySpec("w", np.dtype(np.float32), (2, 3)),))


BUSY = Status(
    generation="g",
    incarnation="i",
    step=6,
    limits=LIMITS,
    rule="sgd(learning_rate=1)",
    initialized=True,
    uptime_s=12.34567,
    pushes_per_s=0.66666,
    counts=COUNTS,
    staleness={0: 4, 3: 2, 5: 2},
    workers=WORKERS,
    unjoined=Counts(rejected={"SESSION_UNKNOWN": 1}),
    steps_per_s=0.44444,
    recent_drop_rate=0.5,
    loss=0.125,
    staleness_sum=16,
    durability=Durability("log", 4, 3.45678, 2, 1, 4096, 3, 5),
    policy_limit=3,
    withheld=1.5,
    name="lab",
    dropped_variables=7,
    waited_s=2.34567,
)


@pytest.mark.parametrize(
    "value",
    [
        Verdict(applied=True, staleness=0, step=1),
        Verdict(applied=False, staleness=2**62, step=2**62, reason=Reason.STALE),
        Verdict(applied=True, staleness=3, step=9, duplicate=True),
        Verdict(applied=True, staleness=3, step=9, factor=1 / 3),
        Verdict(False, 9, 9, Reason.STALE, consecutive_drops=2**63),
        Verdict(False, 3, 9, Reason.SNAPSHOT_GONE),
        Verdict(applied=True, staleness=3, step=9, factor=0.0),
        Verdict(True, 3, 9, dropped_variables=2, left_out=("w", "b")),
        PushHeader(session="s", seq=1, generation="g", step_read=0, nbytes=0),
        PushHeader(
            session="s",
            seq=2**64 - 1,
            generation="g",
            step_read=-1,
            nbytes=2**62,
            layout=LAYOUT,
            value=-2.5,
        ),
        PushHeader(
            session="s",
            seq=1,
            generation="g",
            step_read=0,
            nbytes=0,
            layout=Layout(()),
            value=0.0,
        ),
        LIMITS,
        Limits(None, None, 0, 0),
        Limits(0, 0.0, 2**64 - 1, 2**64 - 1),
        Limits(-1, None, 1, 1),
        COUNTS,
        Counts(),
        *WORKERS,
        BUSY,
        replace(BUSY, initialized=False, workers=(), staleness={}, counts=Counts()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_survives_the_wire(value: Any) -> None:
    """What is absent stays apart from what is zero."""
    message: Message = value.to_proto()

    wire = message.SerializeToString()

    got = type(value).from_proto(type(message).FromString(wire))
    assert (got, repr(got)) == (value, repr(value))  # The text has all of it.


def test_staleness_arrives_in_ascending_order() -> None:
    """A map has no order on the wire, and quantiles need one."""
    sent = replace(BUSY, staleness=dict.fromkeys((7, 0, 300, 2), 1)).to_proto()

    got = Status.from_proto(sent)

    assert list(got.staleness) == [0, 2, 7, 300]


@pytest.mark.parametrize(
    ("staleness", "share", "expected"),
    [
        ({}, 0.5, None),
        ({3: 1}, 0.5, 3),
        ({0: 5, 1: 3, 2: 2}, 0.0, 0),
        ({0: 5, 1: 3, 2: 2}, 0.5, 0),
        ({0: 5, 1: 3, 2: 2}, 0.51, 1),
        ({0: 5, 1: 3, 2: 2}, 0.8, 1),
        ({0: 5, 1: 3, 2: 2}, 0.9, 2),
        ({0: 5, 1: 3, 2: 2}, 1.0, 2),
        ({0: 99, 50: 1}, 0.99, 0),
        ({0: 98, 50: 2}, 0.99, 50),
    ],
)
def test_a_quantile_is_the_least_staleness_that_enough_pushes_do_not_exceed(
    staleness: dict[int, int], share: float, expected: int | None
) -> None:
    """Always a staleness that occurred, none if no push has been judged."""
    got = replace(BUSY, staleness=staleness).staleness_quantile(share)

    assert got == expected


@pytest.mark.parametrize(
    ("counts", "received", "judged", "drop_rate"),
    [
        (Counts(), 0, 0, 0.0),
        (Counts(applied=3), 3, 3, 0.0),
        (Counts(dropped=3), 3, 3, 1.0),
        (Counts(duplicate=2, rejected={"NON_FINITE": 5}), 7, 0, 0.0),
        (COUNTS, 16, 8, 0.25),
    ],
)
def test_counts_reconcile(
    counts: Counts, received: int, judged: int, drop_rate: float
) -> None:
    """The drop rate is of judged pushes alone: neither retries nor errors dilute it."""
    got = (counts.received, counts.judged, counts.drop_rate)

    assert got == (received, judged, drop_rate)


def test_a_status_is_json() -> None:
    """The names are fixed, for scripts; the numbers are plain ones."""
    text = json.dumps(BUSY.to_json(), allow_nan=False)

    counts = {
        "received": 16,
        "applied": 6,
        "dropped": 2,
        "snapshot_gone": 1,
        "duplicate": 3,
        "rejected": {"NON_FINITE": 1, "STEP_READ": 4},
        "drop_rate": 0.25,
    }
    none = {
        **dict.fromkeys(("received", "applied", "dropped", "duplicate"), 0),
        "snapshot_gone": 0,
        "rejected": {},
        "drop_rate": 0.0,
    }
    bounds = [
        "0",
        "1",
        "2",
        "3",
        "4",
        "6",
        "8",
        "12",
        "16",
        "24",
        "32",
        "48",
        "64",
        "96",
        "128",
        "+Inf",
    ]
    assert json.loads(text) == {
        "name": "lab",
        "generation": "g",
        "incarnation": "i",
        "step": 6,
        "limit": 4,
        "limit_now": 3,
        "staleness_policy": "hinge:10,4",
        "max_grad_norm": 1.5,
        "rule": "sgd(learning_rate=1)",
        "initialized": True,
        "uptime_s": 12.346,
        "pushes_per_s": 0.667,
        "steps_per_s": 0.444,
        "recent_drop_rate": 0.5,
        "loss": 0.125,
        **counts,
        "withheld": 1.5,
        "dropped_variables": 7,
        "waited_s": 2.346,
        "mean_staleness": 2.0,
        "staleness": {"0": 4, "3": 2, "5": 2},
        "workers": [
            {
                "name": "a",
                "shard": "3/16",
                "state": "active",
                **counts,
                "consecutive_drops": 2,
                "longest_drops": 3,
                "recent_drops": 2,
                "waiting": True,
                "waited_s": 1.235,
                "last_seen_s": 0.123,
                "pushes_per_s": 0.667,
                "loss": 0.25,
                "mean_staleness": 125.0,
                "staleness": {**dict.fromkeys(bounds, 0), "0": 4, "+Inf": 4},
            },
            {
                "name": "b",
                "shard": None,
                "state": "active",
                **none,
                "consecutive_drops": 0,
                "longest_drops": 0,
                "recent_drops": 0,
                "waiting": False,
                "waited_s": 0.0,
                "last_seen_s": 2.0,
                "pushes_per_s": 0.0,
                "loss": None,
                "mean_staleness": None,
                "staleness": dict.fromkeys(bounds, 0),
            },
        ],
        "unjoined": {**none, "received": 1, "rejected": {"SESSION_UNKNOWN": 1}},
        "durability": {
            "mode": "log",
            "saved_step": 4,
            "saved_s": 3.457,
            "saves": 2,
            "failures": 1,
            "log_nbytes": 4096,
            "log_syncs": 3,
            "corrupt": 5,
        },
    }


@pytest.mark.parametrize(
    ("applied", "dropped", "drops", "last_seen_s", "state"),
    [
        (90, 10, 9, 0.0, "active"),
        (90, 10, 10, 0.0, "starved"),
        (50, 50, 10, 0.0, "starved"),  # 1 in 1,024.
        (49, 51, 10, 0.0, "active"),
        (49, 51, 11, 0.0, "starved"),
        (1, 99, 600, 0.0, "active"),
        (1, 99, 700, 0.0, "starved"),
        (0, 900, 900, 0.0, "active"),  # So fare all.
        (90, 10, 10, 60.0, "starved"),
        (90, 10, 10, 60.1, "silent"),
        (90, 10, 0, 61.0, "silent"),
    ],
)
def test_a_worker_is_starved_if_its_drops_cannot_be_chance(
    applied: int, dropped: int, drops: int, last_seen_s: float, state: str
) -> None:
    """Ten drops in a row are none where most of all pushes are dropped."""
    worker = WorkerStatus("a", Counts(), drops, last_seen_s)
    total = Counts(applied, dropped)
    status = replace(BUSY, counts=total, workers=(worker,), uptime_s=100.0)

    assert status.state(worker) == state


@pytest.mark.parametrize(("last_seen_s", "state"), [(2.9, "starved"), (3.1, "silent")])
def test_a_worker_is_silent_until_it_calls_this_start_of_the_server(
    last_seen_s: float, state: str
) -> None:
    """What it did before says nothing of what it is up to."""
    worker = WorkerStatus("a", Counts(), 20, last_seen_s)

    assert replace(BUSY, uptime_s=3.0).state(worker) == state


@pytest.mark.parametrize(
    ("applied", "dropped", "recent_drops", "state"),
    [
        (90, 10, 17, "active"),
        (90, 10, 18, "starved"),
        (60, 40, 20, "starved"),
        (10, 90, 20, "active"),
    ],
)
def test_one_applied_push_ends_no_starvation(
    applied: int, dropped: int, recent_drops: int, state: str
) -> None:
    """As long as nearly all of its last twenty were dropped."""
    worker = WorkerStatus("a", Counts(), 0, 0.0, recent_drops=recent_drops)
    status = replace(BUSY, counts=Counts(applied, dropped), workers=(worker,))

    assert status.state(worker) == state


def test_no_limit_is_null_in_json() -> None:
    """It is said, not left out."""
    got = replace(BUSY, limits=Limits(None, None, 1, 1)).to_json()

    assert (got["limit"], got["max_grad_norm"]) == (None, None)
