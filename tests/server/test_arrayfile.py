"""The file that a checkpoint's arrays are in."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from psserver.checkpoint import Checkpoint
from psserver.durability import arrayfile
from psserver.durability.disk import RealDisk
from psserver.durability.errors import DataDirectoryError
from pswire.body import Arrays

DISK = RealDisk()


def test_the_library_reads_what_is_written_bit_for_bit(
    tmp_path: Path, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    """Every dtype; scalars, empty and scattered arrays; names of any letters."""
    arrays: dict[str, Any] = {"": np.arange(3), '\\"\n🐌': np.ones((2, 2)).T}
    arrays |= make_checkpoint(seed=3).slots.arrays

    arrayfile.write(DISK, tmp_path / "a", arrays)

    got = load_file(tmp_path / "a")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


def test_every_array_begins_where_its_type_can_be_read(tmp_path: Path) -> None:
    """Other libraries map the file, and some refuse what is not aligned."""
    kinds = {"c": np.int8, "w": np.float64, "b": np.float16}
    arrays: Arrays = {name: np.ones(1, kind) for name, kind in kinds.items()}

    digests = arrayfile.write(DISK, tmp_path / "a", arrays)

    written, text = [*digests], (tmp_path / "a").read_bytes()
    header = 8 + int.from_bytes(text[:8], "little")
    assert [spec.name for spec in written] == ["c", "w", "b"]
    assert header % 8 == 0
    assert text[header:] == b"".join(arrays[name].tobytes() for name in "wbc")


def test_memory_holds_pieces_of_a_large_array(tmp_path: Path) -> None:
    """32 MiB are written, and read, with a tenth of that."""
    array = np.arange(2**23, dtype=np.float32)
    tracemalloc.start()
    try:
        digests = arrayfile.write(DISK, tmp_path / "a", {"w": array})
        for spec, at, piece in arrayfile.read(DISK, tmp_path / "a", digests):
            assert spec.name == "w"
            assert piece == arrayfile.bytes_of(array).data[at : at + len(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert at + len(piece) == array.nbytes
    assert peak < array.nbytes / 10


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, ": expected the header of its manifest's arrays, got another"),
        (20, ": expected the header of its manifest's arrays, got another"),
        (-1, ": w: expected bytes of its sha256, got others"),
    ],
)
def test_a_damaged_file_says_what_was_expected_and_what_came(
    at: int, text: str, tmp_path: Path
) -> None:
    """A byte of its header is another, or of an array."""
    path = tmp_path / "a"
    digests = arrayfile.write(DISK, path, {"w": np.ones(3)})
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)

    with pytest.raises(DataDirectoryError) as raised:
        [*arrayfile.read(DISK, path, digests)]

    assert str(raised.value) == f"{path}{text}"


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("w", np.ones(2, np.complex64), "^w: expected one of .*bool, got complex64"),
        ("k", np.ones(1, ml_dtypes.float8_e5m2), "^k: expected .*, got float8_e5m2"),
        ("__metadata__", np.ones(2), "^__metadata__: expected another name"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    name: str, array: Any, text: str, tmp_path: Path
) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match=text):
        arrayfile.write(DISK, tmp_path / "a", {name: array})

    assert [*tmp_path.iterdir()] == []
