"""A data directory's lock, and what its last server wrote down of itself."""

import os
import stat
from pathlib import Path

import pytest

from psserver.durability.disk import RealDisk
from psserver.durability.ending import Ending
from psserver.durability.errors import DataDirectoryError
from psserver.durability.every import Every
from psserver.durability.lock import locked


def test_one_server_has_a_data_directory(tmp_path: Path) -> None:
    """The second one learns at once who has it; afterwards it may have it."""
    folder = tmp_path / "new" / "data"

    with locked(folder):
        told = f"data_dir: expected .* alone, got one that process {os.getpid()} is"
        with pytest.raises(DataDirectoryError, match=told), locked(folder):
            pytest.fail("two have it")
        with pytest.raises(DataDirectoryError, match=told), locked(folder):
            pytest.fail("two have it, once one was refused")

    with locked(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("ending", [Ending("log"), Ending("checkpoint", True, "g", 7)])
def test_what_a_server_wrote_down_is_read(tmp_path: Path, ending: Ending) -> None:
    """In place of what was there; a file of a server that was killed is in no way."""
    disk = RealDisk()
    (tmp_path / "state.json.new").write_text("torn")
    Ending("checkpoint", True, "before", 3).write(disk, tmp_path)

    ending.write(disk, tmp_path)

    assert Ending.read(disk, tmp_path) == ending
    assert os.listdir(tmp_path) == ["state.json"]


def test_where_nobody_wrote_nothing_is_read(tmp_path: Path) -> None:
    """In a folder that is not there, too."""
    assert Ending.read(RealDisk(), tmp_path) is None
    assert Ending.read(RealDisk(), tmp_path / "none") is None


def test_every_bit_of_it_counts(tmp_path: Path) -> None:
    """It decides whether a history goes on: nothing is guessed."""
    disk, path = RealDisk(), tmp_path / "state.json"
    Ending("log", True).write(disk, tmp_path)
    whole = path.read_bytes()

    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataDirectoryError, match="expected how the last server"):
            Ending.read(disk, tmp_path)
        path.write_bytes(whole[:at])
        with pytest.raises(DataDirectoryError, match="expected how the last server"):
            Ending.read(disk, tmp_path)


@pytest.mark.parametrize(
    ("text", "every"),
    [
        (1000, Every(steps=1000)),
        ("1000", Every(steps=1000)),
        ("60s", Every(seconds=60.0)),
        ("0.5s", Every(seconds=0.5)),
    ],
)
def test_checkpoints_come_by_steps_or_seconds(text: int | str, every: Every) -> None:
    """A number alone means steps."""
    assert Every.parse(text) == every


@pytest.mark.parametrize(
    "text", [0, -1, "", "s", "0s", "-1s", "5m", "1.5", "nans", "infs", "ten"]
)
def test_what_is_no_interval_is_refused(text: int | str) -> None:
    """What was meant is a guess."""
    with pytest.raises(ValueError, match="checkpoint_every: expected steps as in 1000"):
        Every.parse(text)
