"""A disk with points to fail at, told apart by what is done, and to which file."""

from collections.abc import Sequence
from pathlib import Path

from kit.failpoints import Failpoints
from psserver.durability.disk import Disk, Writer
from pswire.body import Buffer


class FailingDisk:
    """Passes all on to another disk, between one point and the next."""

    def __init__(self, disk: Disk, points: Failpoints) -> None:
        self._disk = disk
        self._points = points
        # What nothing is to happen at.
        self.names = disk.names
        self.nbytes = disk.nbytes
        self.read = disk.read
        self.make_folder = disk.make_folder
        self.truncate = disk.truncate
        self.sync = disk.sync

    def create(self, path: Path) -> Writer:
        writer = self._disk.create(path)
        if path.suffix == ".log":
            return _LogWriter(writer, self._points)
        if _is_saving(path.parent):
            return _CheckpointWriter(writer, self._points)
        return writer

    def rename(self, old: Path, new: Path) -> None:
        self._disk.rename(old, new)
        if _is_saving(old):
            self._points.reach("ckpt.renamed")

    def remove(self, path: Path) -> None:
        self._disk.remove(path)
        if path.name.startswith(".deleting-"):
            self._points.reach("ckpt.old_deleted")

    def sync_folder(self, folder: Path) -> None:
        self._disk.sync_folder(folder)
        if _is_saving(folder):
            self._points.reach("ckpt.synced")
        elif folder.name == "checkpoints":
            self._points.reach("ckpt.dir_synced")


class _LogWriter:
    def __init__(self, writer: Writer, points: Failpoints) -> None:
        self._writer = writer
        self._points = points
        self.truncate = writer.truncate
        self.close = writer.close

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._points.reach("log.before_write")
        if torn := self._points.due("log.torn_write"):
            data = b"".join(buffers)
            self._writer.write([data[: torn.nbytes]])
            torn.act()
            buffers = [data[torn.nbytes :]]
        self._writer.write(buffers)
        self._points.reach("log.after_write")

    def sync(self) -> None:
        self._points.reach("log.before_sync")
        self._writer.sync()
        self._points.reach("log.after_sync")


class _CheckpointWriter:
    def __init__(self, writer: Writer, points: Failpoints) -> None:
        self._writer = writer
        self._points = points
        self.write = writer.write
        self.truncate = writer.truncate
        self.close = writer.close

    def sync(self) -> None:
        self._points.reach("ckpt.tmp_written")
        self._writer.sync()


def _is_saving(folder: Path) -> bool:
    return folder.name.startswith(".saving-")
