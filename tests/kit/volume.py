"""Files and names in memory, and what of them a loss of power may leave.

It leaves what a journaling file system may leave, and no more:

- Of a file, what it held at its last sync, and of what was done to it since: all,
  nothing, all up to some byte, or any of its sectors (those that the file has grown by
  hold zeros if they are lost).
- Of the changes of a folder's names since its last sync, all up to one of them. A name
  that moves from one folder to another is in one of the two. A new file's name is not
  synced with the file: that takes a sync of the folder, as POSIX has it.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

SECTOR_NBYTES = 512


class File:
    """A file's bytes.

    Attributes:
        images: What it held at its last sync, then after each change since.
        has_failed: Whether a sync has failed. No later one makes the file last then:
            Linux takes the pages that it could not write for clean.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.images = [data]
        self.has_failed = False

    @property
    def data(self) -> bytes:
        """What it holds for who reads it now."""
        return self.images[-1]

    def append(self, data: bytes) -> None:
        self.images.append(self.data + data)

    def truncate(self, nbytes: int) -> None:
        self.images.append(self.data[:nbytes].ljust(nbytes, b"\0"))

    def sync(self) -> None:
        if not self.has_failed:
            del self.images[:-1]

    def write_again(self, start: int) -> None:
        """Write the bytes from `start` on once more, and sync them."""
        data, start = self.data, min(start, len(self.data))
        heads = [image[:start].ljust(start, b"\0") for image in self.images]
        self.images = [head + data[start:] for head in heads]
        self.sync()

    def lasting(self, random: Random) -> bytes:
        """Choose what a loss of power leaves."""
        if len(self.images) == 1:
            return self.data
        last = random.randrange(len(self.images))
        image, before = self.images[last], self.images[max(0, last - 1)]
        grown = max(0, len(image) - len(before))
        nbytes = len(image) - random.choice((0, grown, random.randint(0, grown)))
        if random.randrange(2):
            return image[:nbytes]
        starts = range(0, nbytes, SECTOR_NBYTES)
        sectors = (_sector(random.choice(self.images), start) for start in starts)
        return b"".join(sectors)[:nbytes]


class Folder:
    """Names, and what they stand for: now, and after a loss of power at the least."""

    def __init__(self, names: "dict[str, Node] | None" = None) -> None:
        self.names = names or {}
        self.lasting = dict(self.names)


Node = File | Folder
Edit = tuple[Folder, str, Node | None]
"""A name in a folder, and what it is to stand for; None: nothing."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Edits that a loss of power undoes all together, or not at all.

    Attributes:
        edits: Of names.
        folders: All whose earlier changes last if this one does.
    """

    edits: tuple[Edit, ...]
    folders: frozenset[Folder]

    def settle(self) -> None:
        for folder, name, node in self.edits:
            _set(folder.lasting, name, node)


class Volume:
    """A tree of folders."""

    def __init__(self, root: Folder | None = None) -> None:
        self._root = root or Folder()
        self._unsynced: list[_Change] = []  # In the order in which they were made.

    def nbytes(self) -> int:
        """Return the size of all files, in bytes."""
        return _nbytes(self._root)

    def node(self, path: Path) -> Node:
        """Return what a path stands for.

        Raises:
            OSError: Nothing, or a part of it is a file.
        """
        node: Node = self._root
        for name in path.parts[len(path.root) :]:
            if isinstance(node, File):
                raise error(errno.ENOTDIR, path)
            if name not in node.names:
                raise error(errno.ENOENT, path)
            node = node.names[name]
        return node

    def file(self, path: Path) -> File:
        """Return the file that a path stands for."""
        node = self.node(path)
        if isinstance(node, Folder):
            raise error(errno.EISDIR, path)
        return node

    def folder(self, path: Path) -> Folder:
        """Return the folder that a path stands for."""
        node = self.node(path)
        if isinstance(node, File):
            raise error(errno.ENOTDIR, path)
        return node

    def change(self, *edits: Edit, after: Iterable[Folder] = ()) -> None:
        """Make edits, as one.

        Args:
            edits: Of names.
            after: Folders, besides those of the edits, whose earlier changes last if
                this one does.
        """
        for folder, name, node in edits:
            _set(folder.names, name, node)
        folders = frozenset((*after, *(folder for folder, _, _ in edits)))
        self._unsynced.append(_Change(edits, folders))

    def sync(self, folder: Folder) -> None:
        """Make a folder's names last, with what other folders' that takes."""
        wanted = {folder}
        synced: list[_Change] = []
        unsynced: list[_Change] = []
        for change in reversed(self._unsynced):
            if wanted.isdisjoint(change.folders):
                unsynced.append(change)
            else:
                synced.append(change)
                wanted |= change.folders
        for change in reversed(synced):
            change.settle()
        self._unsynced = unsynced[::-1]

    def lasting(self, random: Random) -> "Volume":
        """Choose what a loss of power leaves; this volume is of no use any more."""
        lost: set[Folder] = set()
        keep = random.choice((0.0, 0.5, 0.9, 1.0))
        for change in self._unsynced:
            if lost.isdisjoint(change.folders) and random.random() < keep:
                change.settle()
            else:
                lost |= change.folders
        return Volume(_lasting(self._root, random))


def error(number: int, path: Path) -> OSError:
    """Make the error that the operating system would raise."""
    return OSError(number, os.strerror(number), str(path))


def require_replaceable(there: Node | None, node: Node, path: Path) -> None:
    """Refuse to rename a node to a path where there is one that it cannot replace."""
    if isinstance(there, File) and isinstance(node, Folder):
        raise error(errno.ENOTDIR, path)
    if isinstance(there, Folder):
        if isinstance(node, File):
            raise error(errno.EISDIR, path)
        if there.names:
            raise error(errno.ENOTEMPTY, path)


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    names.pop(name, None)
    if node is not None:
        names[name] = node


def _sector(image: bytes, start: int) -> bytes:
    return image[start : start + SECTOR_NBYTES].ljust(SECTOR_NBYTES, b"\0")


def _nbytes(node: Node) -> int:
    if isinstance(node, File):
        return len(node.data)
    return sum(map(_nbytes, node.names.values()))


def _lasting(folder: Folder, random: Random) -> Folder:
    return Folder(
        {
            name: File(node.lasting(random))
            if isinstance(node, File)
            else _lasting(node, random)
            for name, node in folder.lasting.items()
        }
    )
