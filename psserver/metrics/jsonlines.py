"""A sink that keeps a run's history in a file of JSON lines, bounded in size."""

import json
import os
from pathlib import Path
from typing import BinaryIO

from psserver.metrics.recorder import Sample
from psserver.metrics.sparse import Sparse

_MAX_NBYTES = 16 * 2**20
_OLD_FILES = 8
_NBYTES_PER_S = 2**14


class JsonLines:
    """Appends samples to a file, a line each; a restarted server goes on in it.

    While nothing happens there is a line a minute. Lines of many workers are farther
    apart, so that all of them together have 16 KiB a second at most. A file that is
    full becomes PATH.1, PATH.1 becomes PATH.2, and so on; the oldest is removed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_nbytes: int = _MAX_NBYTES,
        old_files: int = _OLD_FILES,
    ) -> None:
        """Look whether the file can be written.

        Args:
            path: The file, of one server at a time.
            max_nbytes: The most bytes a file has, unless a single line has more; 1 or
                more.
            old_files: How many full files are kept beside it, 1 or more.

        Raises:
            OSError: The file cannot be written.
            ValueError: A bound is less than 1; the message begins with it.
        """
        for name, bound in (("max_nbytes", max_nbytes), ("old_files", old_files)):
            if bound < 1:
                raise ValueError(f"{name}: expected 1 or more, got {bound}")
        self._path = Path(path).absolute()
        self._max_nbytes = max_nbytes
        self._old_files = old_files
        self._sparse = Sparse()
        try:
            with self._path.open("ab+") as file:
                _is_torn(file)
        except OSError as error:
            raise OSError(
                f"metrics_file: expected a file that can be written, got {error}"
            ) from error

    def write(self, sample: Sample) -> None:
        """Append a sample, unless it says nothing new or comes too soon."""
        for kept in self._sparse.admit(sample):
            self._sparse.pause(self._append(kept) / _NBYTES_PER_S)

    def close(self) -> None:
        """Append the last sample, if it has been held back."""
        for kept in self._sparse.rest():
            self._append(kept)

    def _append(self, sample: Sample) -> int:
        """Append a line, and return its size in bytes."""
        text = json.dumps(sample, allow_nan=False, separators=(",", ":"))
        line = text.encode() + b"\n"
        size = self._path.stat().st_size if self._path.exists() else 0
        if size and size + len(line) > self._max_nbytes:
            self._rotate()
        # Opened anew each time: it may have been moved, or its disk have been full.
        with self._path.open("ab+") as file:
            return file.write(b"\n" + line if _is_torn(file) else line)

    def _rotate(self) -> None:
        for number in range(self._old_files, 1, -1):
            newer = _old(self._path, number - 1)
            if newer.exists():
                newer.replace(_old(self._path, number))
        self._path.replace(_old(self._path, 1))


def files(path: Path) -> list[Path]:
    """Return the files that a history at `path` is in, the oldest first."""
    prefix = f"{path.name}."
    old = {
        other: other.name.removeprefix(prefix)
        for other in path.parent.iterdir()
        if other.name.startswith(prefix)
    }
    numbers = {other: int(text) for other, text in old.items() if text.isdecimal()}
    oldest_first = sorted(numbers, key=numbers.__getitem__, reverse=True)
    return oldest_first + [path] * path.exists()


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _is_torn(file: BinaryIO) -> bool:
    """Say whether the last line lacks its end, as a crash or a full disk leaves it."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
