"""What Prometheus reads: every figure of one status, and sums that add up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics

from kit.statuses import QUIET
from psserver.metrics.meter import Meter
from psserver.metrics.prometheus import exposer
from pswire.counts import Counts, WorkerStatus
from pswire.status import Durability, Limits, Status

Metrics = dict[tuple[str, ...], float]
Read = Callable[[str], Metrics]

FAST = WorkerStatus(
    name="fast",
    counts=Counts(5, 1, 1, {"NON_FINITE": 2}),
    consecutive_drops=1,
    last_seen_s=0.5,
    staleness_buckets=(4, 1, 0, 1, *(0,) * 12),
    staleness_sum=4,
)
SLOW = WorkerStatus(
    name="slow",
    counts=Counts(0, 11),
    consecutive_drops=11,
    last_seen_s=2.0,
    staleness_buckets=(*(0,) * 14, 1, 10),
    staleness_sum=100 + 2004,
)
GONE = WorkerStatus(
    name="gone",
    counts=Counts(15, 0, 0, {"STEP_READ": 1}),
    consecutive_drops=0,
    last_seen_s=100.0,
    staleness_buckets=(15, *(0,) * 15),
)
STATUS = replace(
    QUIET,
    step=20,
    limits=Limits(4, None, 1, 1),
    counts=Counts(
        *(20, 12, 1, {"NON_FINITE": 2, "SESSION_UNKNOWN": 3, "STEP_READ": 1}),
        snapshot_gone=1,
    ),
    staleness={0: 19, 1: 1, 3: 1, 100: 1, 200: 10},
    workers=(FAST, GONE, SLOW),
    unjoined=Counts(rejected={"SESSION_UNKNOWN": 3}),
    loss=0.25,
    staleness_sum=1 + 3 + 100 + 2004,
)


def text_of(status: Status, meter: Meter | None = None, accept: str = "") -> str:
    """Return the whole scrape."""
    expose = exposer(lambda: status, meter or Meter(), first=QUIET)
    return expose(accept)[1].decode()


def beginning(scrape: Metrics, *start: str) -> Metrics:
    """Return the samples whose names and labels begin so, without that."""
    size = len(start)
    return {key[size:]: scrape[key] for key in scrape if key[:size] == start}


def test_the_totals_are_those_of_the_status(read_metrics: Read) -> None:
    """Integers as they are, by outcome and reason."""
    scrape = read_metrics(text_of(STATUS))

    assert beginning(scrape, "asyncps_pushes_total") == {
        ("applied", ""): 20,
        ("dropped", "STALE"): 11,
        ("dropped", "SNAPSHOT_GONE"): 1,
        ("duplicate", ""): 1,
        ("rejected", "NON_FINITE"): 2,
        ("rejected", "SESSION_UNKNOWN"): 3,
        ("rejected", "STEP_READ"): 1,
    }
    assert scrape["asyncps_step",] == 20
    assert scrape["asyncps_max_staleness_steps",] == 4
    assert scrape["asyncps_drop_ratio",] == 12 / 32
    assert scrape["asyncps_loss",] == 0.25
    server = ("none", "g", "i", "asyncps", "sgd")
    assert scrape["asyncps_server_info", *server] == 1
    assert scrape["asyncps_staleness_policy_info", "drop"] == 1
    assert scrape["asyncps_limit_now_steps",] == 4
    assert beginning(scrape, "asyncps_workers") == {
        ("active",): 1,
        ("silent",): 1,
        ("starved",): 1,
    }


def test_a_policy_s_doing_is_told(read_metrics: Read) -> None:
    """Its limit of now, and what it left out of pushes since this start began."""
    limits = replace(STATUS.limits, staleness_policy="adaptive:0.9,1,8")
    before = replace(QUIET, counts=Counts(10, 0), withheld=2.0, dropped_variables=3)
    status = replace(STATUS, name="lab", limits=limits, policy_limit=3)
    status = replace(status, withheld=14.5, dropped_variables=10)

    expose = exposer(lambda: status, Meter(), first=before)
    scrape = read_metrics(expose("")[1].decode())

    assert scrape["asyncps_max_staleness_steps",] == 4
    assert scrape["asyncps_limit_now_steps",] == 3
    assert scrape["asyncps_withheld_pushes_total",] == 12.5
    assert scrape["asyncps_dropped_variables_total",] == 7
    assert scrape["asyncps_staleness_policy_info", "adaptive:0.9,1,8"] == 1
    assert scrape["asyncps_server_info", "none", "g", "i", "lab", "sgd"] == 1


def test_the_waits_of_workers_add_up_to_those_of_all(read_metrics: Read) -> None:
    """What forgotten workers have waited is among the others."""
    fast, *others = STATUS.workers
    workers = (replace(fast, waited_s=1.5), *others)
    status = replace(STATUS, workers=workers, waited_s=4.0)

    scrape = read_metrics(text_of(status))

    assert scrape["asyncps_wait_seconds_total",] == 4.0
    assert beginning(scrape, "asyncps_worker_wait_seconds_total") == {
        ("(others)",): 2.5,
        (fast.name,): 1.5,
        **{(worker.name,): 0.0 for worker in others},
    }


def test_the_staleness_is_a_histogram(read_metrics: Read) -> None:
    """Each bucket with those before it, the sum in steps."""
    scrape = read_metrics(text_of(STATUS))

    buckets = beginning(scrape, "asyncps_staleness_steps_bucket")
    assert [*buckets.values()] == [19, 20, 20, 21, *[21] * 9, 21, 22, 32]
    assert [label for (label,) in buckets][-3:] == ["96.0", "128.0", "+Inf"]
    assert scrape["asyncps_staleness_steps_count",] == 32
    assert scrape["asyncps_staleness_steps_sum",] == 1 + 3 + 100 + 2004


def test_the_workers_add_up_to_the_totals(read_metrics: Read) -> None:
    """By outcome and by bucket; who never joined is among the others."""
    scrape = read_metrics(text_of(STATUS))

    pushes = beginning(scrape, "asyncps_worker_pushes_total")
    for outcome in ("applied", "dropped", "duplicate", "rejected"):
        total = sum(beginning(scrape, "asyncps_pushes_total", outcome).values())
        assert sum(n for (of, _), n in pushes.items() if of == outcome) == total
    assert pushes["dropped", "slow"] == 11
    assert pushes["rejected", "(others)"] == 3
    for (bound,), count in beginning(scrape, "asyncps_staleness_steps_bucket").items():
        parts = beginning(scrape, "asyncps_worker_staleness_steps_bucket", bound)
        assert sum(parts.values()) == count
    assert sum(beginning(scrape, "asyncps_worker_staleness_steps_sum").values()) == 2108
    assert beginning(scrape, "asyncps_worker_consecutive_drops") == {
        ("fast",): 1,
        ("gone",): 0,
        ("slow",): 11,
    }
    assert scrape["asyncps_worker_last_seen_seconds", "slow"] == 2.0
    assert beginning(scrape, "asyncps_worker_starved") == {
        ("fast",): 0,
        ("gone",): 0,
        ("slow",): 1,
    }


def test_what_a_forgotten_worker_has_counted_is_among_the_others(
    read_metrics: Read,
) -> None:
    """Its staleness too, so that the sums stay; it has no other figures any more."""
    rejected = {"SESSION_UNKNOWN": 3, "STEP_READ": 1}
    status = replace(STATUS, workers=(FAST, SLOW), unjoined=Counts(15, 0, 0, rejected))

    scrape = read_metrics(text_of(status))

    assert scrape["asyncps_worker_pushes_total", "applied", "(others)"] == 15
    assert scrape["asyncps_worker_pushes_total", "rejected", "(others)"] == 4
    assert scrape["asyncps_worker_staleness_steps_count", "(others)"] == 15
    assert scrape["asyncps_worker_staleness_steps_sum", "(others)"] == 0
    buckets = beginning(scrape, "asyncps_worker_staleness_steps_bucket", "0.0")
    assert sum(buckets.values()) == scrape["asyncps_staleness_steps_bucket", "0.0"]
    seen = beginning(scrape, "asyncps_worker_last_seen_seconds")
    assert [label for (label,) in seen] == ["fast", "slow"]


def test_only_so_many_workers_have_a_label_and_keep_it(read_metrics: Read) -> None:
    """A name that comes first in the alphabet later on takes nobody's."""
    workers = [(GONE, SLOW), (FAST, GONE, SLOW)]
    states = iter([replace(STATUS, workers=each) for each in workers])
    expose = exposer(lambda: next(states), Meter(), first=QUIET, max_labels=1)

    before, after = (read_metrics(expose("")[1].decode()) for _ in range(2))

    for scrape in (before, after):
        dropped = beginning(scrape, "asyncps_worker_pushes_total", "dropped")
        assert dropped == {("(others)",): 12, ("gone",): 0}
    assert after["asyncps_worker_staleness_steps_count", "(others)"] == 17
    assert after["asyncps_worker_consecutive_drops", "(others)"] == 11
    assert after["asyncps_worker_starved", "(others)"] == 1
    assert after["asyncps_worker_last_seen_seconds", "(others)"] == 0.5


def test_a_worker_called_like_the_others_is_one_of_them(read_metrics: Read) -> None:
    """No two series have the same labels."""
    impostor = replace(FAST, name="(others)")

    scrape = read_metrics(text_of(replace(STATUS, workers=(impostor,))))

    assert beginning(scrape, "asyncps_worker_pushes_total", "rejected") == {
        ("(others)",): 2 + 4
    }


def test_what_is_not_there_is_left_out(read_metrics: Read) -> None:
    """No limit is not a limit of 0, no loss none of 0."""
    scrape = read_metrics(
        text_of(replace(STATUS, limits=Limits(None, None, 1, 1), loss=None))
    )

    assert ("asyncps_max_staleness_steps",) not in scrape
    assert ("asyncps_loss",) not in scrape


def test_counters_begin_from_0_with_every_start_of_the_server(
    read_metrics: Read,
) -> None:
    """Else one that had been higher before would be taken for many pushes at once.

    The sums over workers stay those of all, also if a worker was forgotten since.
    """
    more = Counts(8, 1, 2, {"NON_FINITE": 3, "STEP_READ": 1})
    fast = replace(
        FAST,
        counts=more,
        staleness_buckets=(6, 2, 0, 1, *(0,) * 12),
        staleness_sum=5,
    )
    status = replace(
        STATUS,
        step=23,
        counts=Counts(23, 12, 2, {**STATUS.counts.rejected, "NON_FINITE": 3}),
        staleness={**STATUS.staleness, 0: 21, 1: 2},
        staleness_sum=STATUS.staleness_sum + 1,
        workers=(fast, replace(GONE, counts=Counts(applied=2)), SLOW),
        unjoined=Counts(13, 0, 0, {"SESSION_UNKNOWN": 3}),
    )
    expose = exposer(lambda: status, Meter(), first=STATUS)

    scrape = read_metrics(expose("")[1].decode())

    pushes = beginning(scrape, "asyncps_pushes_total")
    assert {key: n for key, n in pushes.items() if n} == {
        ("applied", ""): 3,
        ("duplicate", ""): 1,
        ("rejected", "NON_FINITE"): 1,
    }
    assert scrape["asyncps_drop_ratio",] == 0
    assert scrape["asyncps_staleness_steps_count",] == 3
    assert scrape["asyncps_staleness_steps_sum",] == 1
    workers = beginning(scrape, "asyncps_worker_pushes_total")
    assert {key: n for key, n in workers.items() if n} == {
        ("applied", "fast"): 3,
        ("duplicate", "fast"): 1,
        ("rejected", "fast"): 2,
    }
    assert scrape["asyncps_step",] == 23
    assert scrape["asyncps_worker_consecutive_drops", "slow"] == 11
    assert scrape["asyncps_worker_starved", "slow"] == 1


def test_what_outlasts_the_server_is_told(read_metrics: Read) -> None:
    """Where nothing does, there is no such metric; without a checkpoint no age."""
    kept = Durability("log", 1200, 34.5, 3, 2, log_nbytes=7, log_syncs=9, corrupt=1)

    none, some, first = (
        read_metrics(text_of(replace(STATUS, durability=durability)))
        for durability in (Durability(), kept, Durability("checkpoint"))
    )

    parts = ("asyncps_checkpoint", "asyncps_log")
    assert {key[0]: n for key, n in some.items() if key[0].startswith(parts)} == {
        "asyncps_checkpoint_step": 1200,
        "asyncps_checkpoint_age_seconds": 34.5,
        "asyncps_checkpoint_saves_total": 3,
        "asyncps_checkpoint_failures_total": 2,
        "asyncps_checkpoint_corrupt": 1,
        "asyncps_log_bytes": 7,
        "asyncps_log_syncs_total": 9,
    }
    assert len(beginning(some, "asyncps_server_info", "log")) == 1
    assert not [key for key in none if key[0].startswith(parts)]
    assert ("asyncps_checkpoint_age_seconds",) not in first
    assert first["asyncps_checkpoint_failures_total",] == 0


def test_calls_and_bytes_are_told_by_path_and_method(read_metrics: Read) -> None:
    """And what each part of a push's life took."""
    meter = Meter()
    meter.answered("grpc", "Push", "OK", 0.002)
    meter.answered("grpc", "Push", "OK", 0.0025)
    meter.answered("grpc", "Push", "ABORTED", 100.0)
    meter.moved("samehost", "Pull", received=10, sent=4000)
    meter.moved("samehost", "Pull", received=5)

    scrape = read_metrics(text_of(STATUS, meter))

    counts = beginning(scrape, "asyncps_rpc_seconds_count")
    assert counts == {("ABORTED", "Push", "grpc"): 1, ("OK", "Push", "grpc"): 2}
    total_s = scrape["asyncps_rpc_seconds_sum", "OK", "Push", "grpc"]
    assert total_s == pytest.approx(0.0045)
    within = beginning(scrape, "asyncps_rpc_seconds_bucket", "OK", "0.0025")
    assert within == {("Push", "grpc"): 2}
    late = beginning(scrape, "asyncps_rpc_seconds_bucket", "ABORTED", "60.0")
    assert late == {("Push", "grpc"): 0}
    assert scrape["asyncps_received_bytes_total", "Pull", "samehost"] == 15
    assert scrape["asyncps_sent_bytes_total", "Pull", "samehost"] == 4000
    for part in ("compute", "wire", "lock", "apply"):
        assert scrape[f"asyncps_push_{part}_seconds_count",] == 0


def test_the_process_and_what_it_runs_are_told(read_metrics: Read) -> None:
    """Memory, and the versions."""
    scrape = read_metrics(text_of(STATUS))

    assert scrape["process_resident_memory_bytes",] > 1e6
    assert len(beginning(scrape, "asyncps_build_info")) == 1


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a{b}", "é✓", " a b "])
def test_any_name_of_a_worker_comes_through(
    promtool: Any, read_metrics: Read, name: str
) -> None:
    """Prometheus's own tool has nothing to say against it."""
    text = text_of(replace(STATUS, workers=(replace(FAST, name=name),)))

    checked = promtool("check", "metrics", text=text)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert read_metrics(text)["asyncps_worker_pushes_total", "applied", name] == 5


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
    ],
)
def test_the_text_is_what_was_asked_for(accept: str, content_type: str) -> None:
    """The old format, or the one that has become a standard."""
    said, body = exposer(lambda: STATUS, Meter(), first=QUIET)(accept)

    assert said.startswith(content_type)
    if "openmetrics" in said:
        parse: Any = openmetrics.text_string_to_metric_families
        assert "asyncps_pushes" in {family.name for family in parse(body.decode())}
