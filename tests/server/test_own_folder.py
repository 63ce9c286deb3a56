"""A data directory has its own files, and leaves those of others alone."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from psserver import admin
from psserver.durability.errors import DataDirectoryError
from pswire.errors import ServerUnavailableError

StartServer = Callable[..., psserver.Server]
Keep = Callable[..., psserver.Server]

UP = {"w": np.full(2, -1.0, np.float32)}
ZEROS = {"w": np.zeros(2, np.float32)}


@pytest.fixture
def keep(start_server: StartServer, tmp_path: Path) -> Keep:
    """Start a server that keeps what it has, by default in a folder of the test's."""

    def start(mode: str = "log", **settings: Any) -> psserver.Server:
        place = {"data_dir": tmp_path / "data", "checkpoint_every": 10**9}
        return start_server(durability=mode, **{**place, **settings})

    return start


def train(server: psserver.Server, pushes: int = 1) -> None:
    """Have variables, and push."""
    with psworker.connect(server.address) as client:
        client.initialize(ZEROS)
        for _ in range(pushes):
            assert client.push(UP, client.pull()).applied


def segments(folder: Path) -> list[str]:
    """Return the files of a log."""
    return sorted(path.name for path in (folder / "log").iterdir())


@pytest.mark.parametrize("mode", ["checkpoint", "log"])
def test_what_somebody_has_in_a_folder_called_log_stays(
    keep: Keep, tmp_path: Path, mode: str
) -> None:
    """Though a server begins there, goes on in another mode, and removes its own."""
    notes = tmp_path / "data" / "log" / "notes" / "day-1.log"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")

    for each in (mode, "checkpoint", "log"):
        server = keep(each)
        train(server)
        server.stop()

    assert notes.read_text() == "mine"
    assert keep().status().step == 3


def test_a_log_may_lie_on_another_disk(keep: Keep, tmp_path: Path) -> None:
    """By a symbolic link, which stays."""
    link = tmp_path / "data" / "log"
    link.parent.mkdir()
    (tmp_path / "faster").mkdir()
    link.symlink_to(tmp_path / "faster")

    for mode in ("log", "checkpoint", "log"):
        server = keep(mode)
        train(server)
        server.stop()

    assert link.is_symlink()
    assert keep().status().step == 3


@pytest.mark.parametrize("part", ["log", "checkpoints", "checkpoints/00000001-step-0"])
def test_a_part_of_a_data_directory_is_none_itself(
    keep: Keep, tmp_path: Path, part: str
) -> None:
    """Nothing is written to it."""
    server = keep()
    train(server)
    server.stop()
    before = sorted((tmp_path / "data" / part).iterdir())

    with pytest.raises(DataDirectoryError, match=r"expected a folder of its own, got"):
        keep(data_dir=tmp_path / "data" / part)

    assert sorted((tmp_path / "data" / part).iterdir()) == before
    assert keep().status().step == 1


def test_a_folder_with_a_data_directory_for_a_part_is_none(
    keep: Keep, tmp_path: Path
) -> None:
    """It would be taken for the log, of which nothing is needed."""
    server = keep(data_dir=tmp_path / "data" / "log")
    train(server)
    server.stop()

    with pytest.raises(DataDirectoryError, match=r"another data directory for its log"):
        keep()

    assert keep(data_dir=tmp_path / "data" / "log").status().step == 1


def test_somebody_s_state_json_beside_a_data_directory_does_not_matter(
    keep: Keep, tmp_path: Path
) -> None:
    """Many programs have a file of that name, and a folder called log."""
    (tmp_path / "state.json").write_text("{}")

    server = keep(data_dir=tmp_path / "log")
    train(server)
    server.stop()

    assert keep(data_dir=tmp_path / "log").status().step == 1


def test_starts_that_change_nothing_leave_nothing_behind(
    keep: Keep, tmp_path: Path
) -> None:
    """Whether they fail, as their port is taken, or are stopped, or killed at once."""
    server = keep()
    train(server)
    server.stop()
    counts = []

    for _ in range(3):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(OSError, match="to be free"):
                keep(port=taken.getsockname()[1])
        keep().stop()
        counts.append(len(segments(tmp_path / "data")))

    assert counts[0] == counts[1] == counts[2]
    assert keep().status().step == 1


def test_checkpoints_that_cannot_be_saved_leave_no_segments_behind(
    keep: Keep, tmp_path: Path
) -> None:
    """However often they are tried."""
    server = keep()
    train(server)
    (tmp_path / "data" / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "data" / "checkpoints").touch()

    for _ in range(3):
        train(server)
        with pytest.raises(ServerUnavailableError, match="File exists"):
            admin.save_checkpoint(server.address)
    count = len(segments(tmp_path / "data"))
    (tmp_path / "data" / "checkpoints").unlink()
    (tmp_path / "away").rename(tmp_path / "data" / "checkpoints")

    assert count <= 2
    server.stop()
    assert keep().status().step == 4


def test_a_folder_that_takes_no_checkpoint_is_noticed_at_the_start(
    keep: Keep, tmp_path: Path
) -> None:
    """Not when the first one is due."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "checkpoints").touch()

    with pytest.raises(OSError, match=r"checkpoints"):
        keep("checkpoint")
