"""The metrics file: whole lines in the order of time, and never more than so many."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from psserver.metrics.jsonlines import files
from pswire.counts import Counts
from pswire.status import Durability

MakeSample = Callable[..., dict[str, Any]]
StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]


def _read(path: Path) -> list[Any]:
    """Return all that is in a file and in those beside it, the oldest first."""
    return [
        json.loads(line) for file in files(path) for line in file.read_text().split()
    ]


def _uptimes(path: Path) -> list[float]:
    return [sample["uptime_s"] for sample in _read(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the metrics go."""
    return tmp_path / "run.jsonl"


@pytest.fixture
def make_busy(make_sample: MakeSample) -> Callable[[int], dict[str, Any]]:
    """Make samples of a server that applies a push a second."""
    return lambda second: make_sample(float(second), counts=Counts(applied=second))


def test_a_file_holds_every_sample_as_a_line(
    path: Path, make_busy: Callable[[int], dict[str, Any]]
) -> None:
    """They can be read while the server runs."""
    samples = [make_busy(second) for second in range(3)]
    sink = psserver.JsonLines(path)

    for sample in samples:
        sink.write(sample)

    assert _read(path) == samples


def test_a_restarted_server_goes_on_in_the_same_file(
    path: Path, make_sample: MakeSample
) -> None:
    """The incarnation in each line tells the starts apart."""
    for incarnation in ("first", "second"):
        sink = psserver.JsonLines(path)
        sink.write(make_sample(1.0, incarnation=incarnation))
        sink.close()

    assert [sample["incarnation"] for sample in _read(path)] == ["first", "second"]


def test_a_line_that_a_crash_cut_off_spoils_no_other(
    path: Path, make_busy: Callable[[int], dict[str, Any]]
) -> None:
    """The next one begins on a line of its own."""
    path.write_text('{"time":1,"st')

    psserver.JsonLines(path).write(make_busy(1))

    torn, whole = path.read_text().splitlines()
    assert torn == '{"time":1,"st'
    assert json.loads(whole) == make_busy(1)


def test_files_are_bounded_in_size_and_number_and_hold_whole_lines(
    path: Path, make_busy: Callable[[int], dict[str, Any]]
) -> None:
    """What is lost is the oldest, a file at a time; a restart goes on counting."""
    line = len(json.dumps(make_busy(10), separators=(",", ":"))) + 1
    for seconds in (range(10, 24), range(24, 40)):
        sink = psserver.JsonLines(path, max_nbytes=4 * line, old_files=2)
        for second in seconds:
            sink.write(make_busy(second))
        sink.close()

    assert [file.name for file in files(path)] == [
        *("run.jsonl.2", "run.jsonl.1", "run.jsonl")
    ]
    assert all(file.stat().st_size <= 4 * line for file in files(path))
    assert _uptimes(path) == [float(second) for second in range(30, 40)]


def test_a_single_line_may_be_longer_than_a_file(
    path: Path, make_busy: Callable[[int], dict[str, Any]]
) -> None:
    """It then has a file of its own."""
    sink = psserver.JsonLines(path, max_nbytes=10, old_files=3)

    for second in range(3):
        sink.write(make_busy(second))

    assert [len(file.read_text().splitlines()) for file in files(path)] == [1, 1, 1]


def test_an_idle_server_writes_a_line_a_minute_and_the_last_one(
    path: Path, make_sample: MakeSample
) -> None:
    """The time that passes is no news, nor is how old a checkpoint has become."""
    sink = psserver.JsonLines(path)

    for second in range(1, 131):
        kept = Durability("log", saved_step=0, saved_s=second - 0.5)
        sink.write(make_sample(float(second), durability=kept))
    sink.close()

    assert _uptimes(path) == [1.0, 61.0, 121.0, 130.0]


def test_the_end_of_idleness_is_told_with_its_beginning(
    path: Path, make_sample: MakeSample
) -> None:
    """A line drawn through the samples is level for as long as nothing happened."""
    sink = psserver.JsonLines(path)

    for second in range(1, 31):
        sink.write(make_sample(float(second)))
    sink.write(make_sample(31.0, counts=Counts(applied=1)))
    sink.write(make_sample(32.0, counts=Counts(applied=1), loss=0.5))
    sink.close()

    assert _uptimes(path) == [1.0, 30.0, 31.0, 32.0]


def test_long_lines_are_farther_apart(path: Path, make_sample: MakeSample) -> None:
    """Of 40 KiB there is one every 2.5 s; the last is written in any case."""
    sink = psserver.JsonLines(path)

    for second in range(1, 13):
        sink.write(
            make_sample(float(second), counts=Counts(second), rule="x" * 40 * 2**10)
        )
    sink.close()

    assert _uptimes(path) == [1.0, 4.0, 7.0, 10.0, 12.0]


def test_two_long_lines_at_once_count_as_two(
    path: Path, make_sample: MakeSample
) -> None:
    """The end of idleness is still told with its beginning."""
    sink = psserver.JsonLines(path)

    for second in range(1, 31):
        counts = Counts(applied=max(second - 20, 0))
        sink.write(make_sample(float(second), counts=counts, rule="x" * 40 * 2**10))

    assert _uptimes(path) == [1.0, 20.0, 21.0, 27.0, 30.0]


def test_a_sink_may_serve_one_server_after_another(
    path: Path, make_sample: MakeSample
) -> None:
    """The uptime of the second begins anew."""
    sink = psserver.JsonLines(path)

    for uptime_s, incarnation in ((1000.0, "first"), (1.0, "second")):
        sink.write(make_sample(uptime_s, incarnation=incarnation))

    assert _uptimes(path) == [1000.0, 1.0]


@pytest.mark.parametrize("name", ["max_nbytes", "old_files"])
def test_a_bound_is_one_or_more(path: Path, name: str) -> None:
    """Without a single full file nothing of it would be kept."""
    with pytest.raises(ValueError, match=f"^{name}: expected 1 or more, got 0$"):
        psserver.JsonLines(path, **{name: 0})


@pytest.mark.parametrize("name", ["missing/run.jsonl", "."])
def test_a_file_that_cannot_be_written_is_an_error_at_once(
    tmp_path: Path, name: str
) -> None:
    """Not once the run is over."""
    text = "^metrics_file: expected a file that can be written, got "
    with pytest.raises(OSError, match=text):
        psserver.JsonLines(tmp_path / name)


def test_after_trouble_with_the_disk_it_goes_on(
    tmp_path: Path, make_busy: Callable[[int], dict[str, Any]]
) -> None:
    """Whoever shows it the samples is told of each that is lost."""
    path = tmp_path / "disk" / "run.jsonl"
    path.parent.mkdir()
    sink = psserver.JsonLines(path)
    shutil.rmtree(path.parent)

    with pytest.raises(FileNotFoundError):
        sink.write(make_busy(1))
    path.parent.mkdir()
    sink.write(make_busy(2))

    assert _uptimes(path) == [2.0]


def test_training_goes_on_without_a_disk(
    tmp_path: Path, start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what is lost."""
    path = tmp_path / "disk" / "run.jsonl"
    path.parent.mkdir()
    server = start_server(sinks=[psserver.JsonLines(path)])
    # At once, not file by file: a line may be written meanwhile.
    path.parent.rename(tmp_path / "gone")

    with psworker.connect(server.address) as client:
        client.initialize({"w": np.zeros(2, np.float32)})
        verdict = client.push({"w": np.ones(2, np.float32)}, client.pull())
    server.stop()

    assert verdict.applied
    assert "metrics are lost: JsonLines: " in caplog.text
