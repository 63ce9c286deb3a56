"""The report of a run: its figures, and that it is one file that harms nobody."""

import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import psserver
import psworker
from psserver.cli import main
from psserver.metrics.jsonlines import JsonLines
from pswire.counts import STALENESS_BOUNDS, Counts, WorkerStatus
from pswire.status import Limits

MakeSample = Callable[..., dict[str, Any]]
StartServer = Callable[..., psserver.Server]
Run = Callable[..., Result]
Report = Callable[..., dict[str, Any]]

_HOSTILE = "</script><script>alert(1)</script><img src=http://127.0.0.1/x>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the metrics are."""
    return tmp_path / "run.jsonl"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the report goes."""
    return tmp_path / "report.html"


@pytest.fixture
def run(path: Path, output: Path) -> Run:
    """Run `psserver report` with some options more."""

    def invoke(*options: str) -> Result:
        arguments = ["report", str(path), "-o", str(output), *options]
        return CliRunner().invoke(main, arguments)

    return invoke


@pytest.fixture
def report(path: Path, output: Path, run: Run, make_sample: MakeSample) -> Report:
    """Report some samples, and return the figures that the page shows.

    As a server does, it begins each start with a sample of its own: by default that of
    one that begins from nothing.
    """

    def make(samples: Sequence[Any], *options: str) -> dict[str, Any]:
        written: list[Any] = []
        for sample in samples:
            name, uptime_s = sample["incarnation"], sample["uptime_s"]
            is_known = any(each["incarnation"] == name for each in written)
            if 0 < uptime_s <= 60 and not is_known:
                began = sample["time"] - uptime_s
                written.append(make_sample(0.0, time=began, incarnation=name))
            written.append(sample)
        path.write_text("".join(f"{json.dumps(sample)}\n" for sample in written))
        result = run(*options)
        assert (result.exit_code, result.stderr) == (0, "")
        return _data(output)

    return make


def _data(output: Path) -> dict[str, Any]:
    """Return the figures that a page holds."""
    found = re.search(r'<script [^>]*id="data">(.*?)</script>', output.read_text())
    assert found is not None
    return json.loads(found[1])


def _worker(name: str, counts: Counts, **fields: Any) -> WorkerStatus:
    known = {"consecutive_drops": 0, "last_seen_s": 0.5, **fields}
    return WorkerStatus(name, counts, **known)


def _buckets(**pushes: int) -> tuple[int, ...]:
    """Return a worker's buckets, of which those that are named hold pushes."""
    names = [*(f"upto_{bound}" for bound in STALENESS_BOUNDS), "more"]
    return tuple(pushes.get(name, 0) for name in names)


# The figures


def test_a_report_says_what_the_server_counted(
    path: Path, output: Path, run: Run, start_server: StartServer
) -> None:
    """Of a real run: every number is that of the server's own status."""
    server = start_server(max_staleness=1, sinks=[JsonLines(path)])
    with psworker.connect(server.address, name="ann") as client:
        client.initialize({"w": np.zeros(2, np.float32)})
        snapshot = client.pull()
        for _ in range(5):
            client.push({"w": np.ones(2, np.float32)}, snapshot)
        server.stop()
    status = server.status()

    result = run()

    data = _data(output)
    counts = status.counts.to_json()
    assert result.output == f"report: {output}\n"
    assert (counts["applied"], counts["dropped"]) == (2, 3)
    assert {name: data["total"][name] for name in counts} == counts
    assert data["total"]["step"] == status.step
    assert data["staleness"]["counts"] == status.to_json()["staleness"]
    (row,) = data["workers"]
    told = status.to_json()["workers"][0]
    assert row["staleness"] == list(told["staleness"].values())
    for name in ("name", "applied", "dropped", "longest_drops", "mean_staleness"):
        assert row[name] == told[name]


def test_the_starts_of_a_server_are_told_apart_and_added_up(
    report: Report, make_sample: MakeSample
) -> None:
    """Each has begun to count from nothing; the time between them is nobody's."""
    ann = Counts(applied=6, dropped=2, duplicate=1)
    bob = Counts(applied=2, dropped=2, rejected={"NON_FINITE": 1})
    again = Counts(applied=1, dropped=3)
    rows = [
        make_sample(
            20.0,
            time=1020.0,
            incarnation="first",
            counts=Counts(8, 4, 1, {"NON_FINITE": 1}, snapshot_gone=2),
            staleness={0: 8, 9: 4},
            workers=(_worker("ann", ann, longest_drops=5), _worker("bob", bob)),
        ),
        make_sample(
            10.0,
            time=1110.0,
            incarnation="second",
            counts=Counts(1, 3),
            staleness={0: 1, 1200: 3},
            staleness_sum=3615,  # They are 1,205 steps old, which has four digits.
            workers=(_worker("ann", again, longest_drops=3),),
        ),
    ]

    data = report(rows)

    first, second = data["starts"]
    assert (first["applied"], first["dropped"], first["drop_rate"]) == (8, 4, 1 / 3)
    assert (second["applied"], second["dropped"], second["drop_rate"]) == (1, 3, 0.75)
    assert (first["began_s"], second["began_s"]) == (0.0, 100.0)
    assert data["total"] == {
        "uptime_s": 30.0,
        "samples": 4,
        "step": 9,
        "received": 18,
        "applied": 9,
        "dropped": 7,
        "snapshot_gone": 2,
        "duplicate": 1,
        "rejected": {"NON_FINITE": 1},
        "drop_rate": 7 / 16,
    }
    assert data["staleness"] == {
        "counts": {"0": 9, "9": 4, "1200": 3},
        "mean": 3651 / 16,
        "median": 0,
    }
    workers = {row["name"]: row for row in data["workers"]}
    assert (workers["ann"]["applied"], workers["ann"]["dropped"]) == (7, 5)
    assert workers["ann"]["drop_rate"] == 5 / 12
    assert workers["ann"]["longest_drops"] == 5
    assert (workers["ann"]["state"], workers["bob"]["state"]) == ("active", None)


def test_what_a_start_went_on_from_is_not_its_own(
    report: Report, make_sample: MakeSample
) -> None:
    """It begins with fewer pushes than the start before had counted, or with as many.

    So every push is counted once, also one that the restart undid.
    """

    def moment(start: str, uptime_s: float, done: int, **fields: Any) -> Any:
        counts = Counts(done, done // 2)
        zero, two = done, done // 2
        worker = _worker(
            "ann",
            counts,
            staleness_buckets=_buckets(upto_0=zero, upto_2=two),
            staleness_sum=2 * two,
        )
        return make_sample(
            uptime_s,
            incarnation=start,
            counts=Counts(done, done // 2, rejected={"SESSION_UNKNOWN": done}),
            staleness={0: zero, 2: two},
            workers=(worker,),
            unjoined=Counts(rejected={"SESSION_UNKNOWN": done}),
            **fields,
        )

    rows = [
        moment("killed", 10.0, 100, time=1010.0),
        moment("cut", 0.0, 80, time=1020.0),
        moment("cut", 10.0, 90, time=1030.0),
        moment("whole", 0.0, 90, time=1040.0),
        moment("whole", 10.0, 120, time=1050.0),
    ]

    data = report(rows)

    assert [start["applied"] for start in data["starts"]] == [100, 10, 30]
    assert [start["step"] for start in data["starts"]] == [100, 10, 30]
    assert data["total"]["step"] == 140
    assert data["total"]["dropped"] == 70
    assert data["unjoined"]["rejected"] == {"SESSION_UNKNOWN": 140}
    assert data["staleness"]["counts"] == {"0": 140, "2": 70}
    assert data["staleness"]["mean"] == 2 / 3
    (ann,) = data["workers"]
    assert (ann["applied"], ann["mean_staleness"]) == (140, 2 / 3)
    assert ann["staleness"] == [*_buckets(upto_0=140, upto_2=70)]
    assert data["curves"]["steps"] == [0, 100, 100, 110, 110, 140]
    assert data["curves"]["steps_per_s"] == [None, 10.0, None, 1.0, None, 3.0]


def test_the_staleness_of_a_worker_is_that_of_all_its_starts(
    report: Report, make_sample: MakeSample
) -> None:
    """Its mean is exact; its median is known to a bucket."""
    counts = Counts(applied=2, dropped=2)
    near = _buckets(upto_0=1, upto_6=2, more=1)
    far = _buckets(upto_6=1, upto_12=3)
    rows = [
        make_sample(
            1.0,
            incarnation=incarnation,
            counts=counts,
            workers=(
                _worker("ann", counts, staleness_buckets=buckets, staleness_sum=total),
            ),
        )
        for incarnation, buckets, total in (("a", near, 140), ("b", far, 36))
    ]

    (row,) = report(rows)["workers"]

    assert row["staleness"] == list(_buckets(upto_0=1, upto_6=3, upto_12=3, more=1))
    assert row["mean_staleness"] == 22.0
    assert row["median_staleness"] == "5-6"


def test_how_long_a_worker_was_starved_is_told(
    report: Report, make_sample: MakeSample
) -> None:
    """Also when it has recovered since."""
    good, bad = Counts(applied=1), Counts(dropped=20)
    rows = [
        make_sample(
            float(second),
            counts=Counts(applied=500, dropped=20),
            workers=(_worker("ann", good), _worker("bob", bad, consecutive_drops=run)),
        )
        for second, run in enumerate([0, 20, 20, 20, 0, 0], 1)
    ]

    ann, bob = report(rows)["workers"]

    assert (ann["starved_s"], bob["starved_s"]) == (0.0, 3.0)
    assert bob["state"] == "active"


# The curves


def test_a_point_tells_of_the_last_ten_seconds(
    report: Report, make_sample: MakeSample
) -> None:
    """From the counters alone; where nothing was judged there is no drop rate."""
    totals = [(4, 0), (10, 0), (10, 10), (10, 10)]
    rows = [
        make_sample(
            uptime_s,
            counts=Counts(*total),
            loss=loss,
            staleness={2: total[0], 1000: total[1]},
            staleness_sum=2 * total[0] + 1009 * total[1],
        )
        for uptime_s, total, loss in zip(
            (2.0, 10.0, 20.0, 40.0), totals, (None, 2.0, 1.5, None), strict=True
        )
    ]

    curves = report(rows)["curves"]

    assert curves == {
        "seconds": [0.0, 2.0, 10.0, 20.0, 40.0],
        "steps": [0, 4, 10, 10, 10],
        "drop_rate": [None, 0.0, 0.0, 1.0, None],
        "steps_per_s": [None, 2.0, 1.0, 0.0, 0.0],
        "loss": [None, None, 2.0, 1.5, None],
        "staleness": [None, 2.0, 2.0, 1009.0, None],
    }


def test_a_report_says_by_what_pushes_were_judged_and_when_that_changed(
    report: Report, make_sample: MakeSample
) -> None:
    """On the time line of all starts; one that goes on alike is no change."""
    limits, others = Limits(8, None, 0, 0, "drop"), Limits(8, None, 0, 0, "inverse")
    open_end = replace(others, max_staleness=None)
    first = dict.fromkeys((0.0, 1.0, 2.0), limits) | {3.0: others, 4.0: others}
    second = {0.0: others, 1.0: open_end, 2.0: open_end}
    samples = [
        make_sample(
            at,
            time=began + at,
            incarnation=name,
            limits=each,
            counts=Counts(10 * int(at), 0),
        )
        for name, began, start in (("a", 1000.0, first), ("b", 1010.0, second))
        for at, each in start.items()
    ]

    data = report(samples)

    assert [start["policy"] for start in data["starts"]] == ["inverse"] * 2
    assert data["terms"] == [
        {"seconds": 0.0, "step": 0, "limit": 8, "policy": "drop"},
        {"seconds": 3.0, "step": 30, "limit": 8, "policy": "inverse"},
        {"seconds": 11.0, "step": 50, "limit": None, "policy": "inverse"},
    ]


def test_a_file_that_names_no_policy_is_of_a_server_that_had_none(
    report: Report, make_sample: MakeSample
) -> None:
    """It left all to the limit."""
    sample = make_sample(1.0)
    del sample["staleness_policy"]

    assert [row["policy"] for row in report([sample])["terms"]] == ["drop"]


def test_curves_are_parted_where_the_server_was_restarted(
    report: Report, make_sample: MakeSample
) -> None:
    """Time goes on, also if the clock was set back; steps are added up."""
    rows = [
        make_sample(5.0, time=1005.0, incarnation="a", counts=Counts(applied=50)),
        make_sample(5.0, time=205.0, incarnation="b", counts=Counts(applied=10)),
    ]

    curves = report(rows)["curves"]

    assert curves["seconds"] == [0.0, 5.0, 5.0, 10.0]
    assert curves["steps"] == [0, 50, 50, 60]
    assert curves["steps_per_s"] == [None, 10.0, None, 2.0]


def test_a_long_run_is_thinned_and_no_drop_is_lost(
    report: Report, make_sample: MakeSample
) -> None:
    """A single second of drops among hours still shows, by the rate that it makes."""
    rows = [
        make_sample(float(s), counts=Counts(s, 7 * (s >= 5003)), loss=1.0)
        for s in range(1, 20_001)
    ]

    curves = report(rows)["curves"]

    assert 900 <= len(curves["seconds"]) <= 1001
    assert curves["seconds"][-1] == 20_000.0
    assert {rate for rate in curves["drop_rate"] if rate} == {7 / 28}
    assert set(curves["loss"][1:]) == {1.0}


def test_a_file_that_begins_in_mid_run_guesses_nothing(
    report: Report, make_sample: MakeSample
) -> None:
    """Full files have been removed: the counts hold what the curves cannot."""
    rows = [
        make_sample(float(s), counts=Counts(applied=s), loss=0.5)
        for s in (7200, 7201, 7212)
    ]

    data = report(rows, "--target", "0.5")

    assert data["curves"]["steps_per_s"] == [None, 1.0, 1.0]
    assert data["total"]["applied"] == 7212
    assert data["starts"][0]["is_whole"] is False
    assert data["targets"][0]["at_first_sight"] is True


# Time to target


def test_a_target_is_reached_at_a_time_a_step_and_a_push(
    report: Report, make_sample: MakeSample
) -> None:
    """Counted from the start that reached it first; one may never be reached."""
    losses = [("a", 1, 2.0), ("a", 2, 1.0), ("b", 1, 3.0), ("b", 2, 0.5), ("b", 3, 0.2)]
    rows = [
        make_sample(
            10.0 * number,
            incarnation=start,
            counts=Counts(applied=8 * number, dropped=number),
            loss=loss,
        )
        for start, number, loss in losses
    ]

    targets = report(rows, "--target", "1", "--target", "0.5", "--target", "0.1")

    one, half, never = targets["targets"]
    assert (one["start"], one["uptime_s"], one["step"], one["judged"]) == (
        0,
        20,
        16,
        18,
    )
    assert (half["start"], half["uptime_s"], half["step"]) == (1, 20.0, 16)
    assert (never["loss"], never["start"], never["uptime_s"]) == (0.1, None, None)


@pytest.mark.parametrize(
    ("losses", "levels"),
    [
        ([2.3, 0.9, 0.043], [2, 1, 0.5, 0.2, 0.1, 0.05]),
        ([2.0, 1.95, 1.71], [1.95, 1.9, 1.85, 1.8, 1.75]),
        ([10.0, -10.0, -60.0], [0, -10, -20, -30, -40, -50, -60]),
        ([1e3, 1e-6], [100, 1, 0.01, 0.0001, 0.000001]),
        ([1.7e308, -1.7e308], [5e299, 0, -5e299, -1e300]),
        ([5e-324, 0.0], []),
        ([1.0, 2.0], []),
        ([None], []),
    ],
)
def test_without_a_target_round_losses_are_told(
    losses: Sequence[float | None],
    levels: Sequence[float],
    report: Report,
    make_sample: MakeSample,
) -> None:
    """A few between the first loss and the best, each of them reached."""
    rows = [make_sample(float(s), loss=loss) for s, loss in enumerate(losses, 1)]

    targets = report(rows)["targets"]

    assert [target["loss"] for target in targets] == levels
    assert all(target["start"] == 0 for target in targets)


@pytest.mark.parametrize("target", ["nan", "inf"])
def test_a_target_is_a_finite_number(
    path: Path, run: Run, make_sample: MakeSample, target: str
) -> None:
    """Else it would be reached at once, or never."""
    path.write_text(json.dumps(make_sample(1.0)))

    result = run("--target", target)

    assert result.exit_code == 1
    assert f"target: expected a finite loss, got {target}" in result.output


# The files


def test_full_files_are_read_first(
    path: Path, output: Path, run: Run, make_sample: MakeSample
) -> None:
    """Ten comes before nine; what else lies there is not read."""
    sink = JsonLines(path, max_nbytes=1, old_files=12)
    for second in range(12):
        sink.write(make_sample(float(second), counts=Counts(applied=second)))
    for name in ("run.jsonl.bak", "run.jsonl.old.5", "5"):
        (path.parent / name).write_text("no history")

    result = run()

    assert result.stderr == ""
    assert _data(output)["curves"]["steps"] == [*range(12)]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"time":1',
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=["torn", "empty", "list", "lacks", "bytes", "deep"],
)
def test_a_damaged_line_is_named_and_left_out(
    path: Path, output: Path, run: Run, make_sample: MakeSample, damage: bytes
) -> None:
    """Nothing is skipped silently, and the rest is reported."""
    lines = [json.dumps(make_sample(float(second))).encode() for second in (1, 2)]
    path.write_bytes(b"\n".join([lines[0], damage, lines[1]]) + b"\n")

    result = run()

    assert result.exit_code == 0
    assert result.stderr.startswith(f"{path}:2: expected a sample, got ")
    assert result.stderr.count("\n") == 1
    assert _data(output)["total"]["samples"] == 2


def test_of_many_damaged_lines_the_first_are_named_and_the_others_counted(
    path: Path, run: Run, make_sample: MakeSample
) -> None:
    """Another file altogether does not fill the terminal."""
    path.write_text("<p>\n" * 100 + json.dumps(make_sample(1.0)))

    result = run()

    assert result.exit_code == 0
    *named, counted = result.stderr.splitlines()
    starts = [f"{path}:{number}: expected a sample" for number in range(1, 6)]
    assert [line[: len(start)] for line, start in zip(named, starts, strict=True)] == (
        starts
    )
    assert counted == f"{path}: 95 more damaged lines, left out too"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", '"much"', "[]"])
def test_a_figure_that_is_no_finite_number_is_damage(
    path: Path, run: Run, make_sample: MakeSample, number: str
) -> None:
    """No server writes one, and no page could draw it."""
    line = json.dumps(make_sample(1.0, loss=0.5))
    path.write_text(line.replace('"loss": 0.5', f'"loss": {number}') + f"\n{line}\n")

    result = run()

    assert result.exit_code == 0
    assert result.stderr.startswith(f"{path}:1: expected a sample, got ")


@pytest.mark.parametrize(
    "figures",
    [
        {"step": 10**400},
        {"applied": 2**64},
        {"dropped": -1},
        {"limit": -(2**64)},
        {"time": 1e300},
        {"uptime_s": -1.0},
        {"mean_staleness": 1e300},
        {"staleness": {"1": 10**400}},
    ],
    ids=" ".join,
)
def test_a_figure_beyond_what_can_be_is_damage(
    path: Path, run: Run, make_sample: MakeSample, figures: dict[str, Any]
) -> None:
    """Sums and charts of all the other lines would be lost with it."""
    sample = make_sample(1.0)
    path.write_text(f"{json.dumps({**sample, **figures})}\n{json.dumps(sample)}\n")

    result = run()

    assert result.exit_code == 0
    assert result.stderr.startswith(f"{path}:1: expected a sample, got ValueError: ")


@pytest.mark.parametrize("text", [None, "", "no sample\n"])
def test_no_sample_is_an_error(
    path: Path, output: Path, run: Run, text: str | None
) -> None:
    """Nothing is written then."""
    if text is not None:
        path.write_text(text)

    result = run()

    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert "Traceback" not in result.output
    assert not output.exists()


def test_a_report_that_cannot_be_written_is_an_error(
    path: Path, tmp_path: Path, make_sample: MakeSample
) -> None:
    """It is said in one line, by its path."""
    path.write_text(json.dumps(make_sample(1.0)))
    output = tmp_path / "missing" / "report.html"

    result = CliRunner().invoke(main, ["report", str(path), "-o", str(output)])

    assert result.exit_code == 1
    assert str(output) in result.output


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.1", "link"])
def test_a_report_never_takes_the_place_of_the_history(
    path: Path, tmp_path: Path, make_sample: MakeSample, name: str
) -> None:
    """Whatever it is called by, neither the file nor a full one beside it."""
    line = json.dumps(make_sample(1.0))
    for file in (path, tmp_path / "run.jsonl.1"):
        file.write_text(line)
    (tmp_path / "link").symlink_to(path)
    output = tmp_path / name

    result = CliRunner().invoke(main, ["report", str(path), "-o", str(output)])

    assert result.exit_code == 1
    assert f"output: expected no metrics file, got {output}" in result.stderr
    assert output.read_text() == line


def test_a_report_is_written_whole_or_not_at_all(
    path: Path, tmp_path: Path, output: Path, run: Run, make_sample: MakeSample
) -> None:
    """On a disk that is full the one before stays, and nothing else is left behind."""
    path.write_text(json.dumps(make_sample(1.0)))
    output.symlink_to(tmp_path / "before.html")
    assert run().exit_code == 0
    before = output.read_text()
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        result = run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert result.exit_code == 1
    assert "File too large" in result.stderr
    assert output.read_text() == before
    assert {file.name for file in tmp_path.iterdir()} == {
        *("run.jsonl", "report.html", "before.html")
    }


def test_a_report_can_go_into_a_pipe(
    path: Path, output: Path, run: Run, make_sample: MakeSample
) -> None:
    """It is not replaced by a file."""
    path.write_text(json.dumps(make_sample(1.0)))
    os.mkfifo(output)
    pipe = os.open(output, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 2**20)  # Room for all of it.

        result = run()

        assert result.exit_code == 0
        assert os.read(pipe, 2**20).endswith(b"</html>\n")
    finally:
        os.close(pipe)


# The page


@pytest.fixture
def hostile(report: Report, make_sample: MakeSample) -> None:
    """Report a run of two starts, whose names and settings are out for mischief."""
    policies = {1: "drop", 2: "drop", 3: _HOSTILE}
    counts = Counts(applied=5, dropped=1, rejected={_HOSTILE: 1})
    buckets = _buckets(upto_2=5, more=1)
    worker = _worker(_HOSTILE, counts, staleness_buckets=buckets)
    report(
        [
            make_sample(
                float(second),
                incarnation=start,
                rule=_HOSTILE,
                limits=Limits(8, None, 0, 0, policies[second]),
                counts=counts,
                staleness={2: 5, 200: 1},
                workers=(worker,),
                unjoined=counts,
                loss=1.0 / second,
            )
            for start in ("a", "b")
            for second in (1, 2, 3)
        ]
    )


@pytest.mark.usefixtures("hostile")
def test_a_page_asks_nobody_for_anything(output: Path) -> None:
    """It forbids itself any request, and holds no name that could end a script."""
    page = output.read_text()

    assert "default-src 'none'" in page
    assert page.count("</script") == 2
    assert _HOSTILE not in page
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page)


@pytest.mark.usefixtures("hostile")
def test_a_browser_draws_the_page_without_a_complaint(
    output: Path, tmp_path: Path
) -> None:
    """From the file as it lies there; names are text, and nothing else."""
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("REQUIRE_TOOLS"), "chromium is not installed"
        pytest.skip("chromium is not installed")
    options = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *("--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}"),
    )

    done = subprocess.run(
        [chromium, *options, "--dump-dom", output.as_uri()],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )

    assert "CONSOLE" not in done.stderr
    drawn = done.stdout.partition("<script")[0]
    assert drawn.count("<canvas") == 6
    assert drawn.count("<table") == 5
    assert "&lt;img src=http://127.0.0.1/x&gt;</th>" in drawn
    assert "<img" not in drawn
