"""Damage to a data directory between two servers, and what must follow from it."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from kit.virtualdisk import VirtualDisk
from psserver.durability.ending import NAME, Ending
from psserver.durability.reader import NotWholeError, Reader
from psserver.durability.records import Kind
from psserver.durability.segments import segments
from simulation.faults import Faults
from simulation.server import FOLDER, Settings
from simulation.witness import Witness

LOG = FOLDER / "log"
_ANY = (Settings("log", None, 2), Settings("checkpoint", None, 2))


class Damage:
    """Damages what a witness knows the fate of: no server starts, or nothing is lost.

    What no server starts with is tried on a copy.
    """

    def __init__(self, witness: Witness, faults: Faults, random: Random) -> None:
        self._witness = witness
        self._faults = faults
        self._random = random

    def strike(self) -> None:
        """Damage something, if there is anything of which that can be said."""
        promise = self._witness.promise
        kinds: list[Callable[[], None]] = [self._ending]
        if promise.may_damage:
            kinds += [self.newest_checkpoint] * 4
        if promise.has_log:
            kinds += [self._middle_of_log, self._end_of_log, self._whole_log]
            if promise.may_damage and promise.is_sealed:
                kinds += [self._sealed_end] * 4
        self._random.choice(kinds)()

    def newest_checkpoint(self) -> None:
        """Change a bit of it: the one before is used, and the log if there is one."""
        self._witness.promise.damage(self._witness.model)
        with self._faults.undisturbed() as disk:
            self._flip_in_checkpoint(disk)

    def _ending(self) -> None:
        """Change a bit of state.json; where it is lost, another history begins."""
        with self._faults.on_a_copy() as disk:
            if NAME not in disk.names(FOLDER):
                return
            self._flip(disk, FOLDER / NAME)
            self._refuse()
        if self._random.random() < 0.5:
            self._witness.promise.forget_ending()
            with self._faults.undisturbed() as disk:
                disk.remove(FOLDER / NAME)
                disk.sync_folder(FOLDER)

    def _middle_of_log(self) -> None:
        """Change a bit that a later record knows to be on the disk."""
        with self._faults.on_a_copy() as disk:
            reader, _ = _read(disk)
            if reader.synced:
                self._flip(disk, _newest_segment(disk), reader.synced)
                self._refuse()

    def _end_of_log(self) -> None:
        """Let there be bytes that may be of what was never acknowledged."""
        with self._faults.undisturbed() as disk:
            reader, _ = _read(disk)
            if not reader.end:
                return  # It would be a beginning that is damaged.
            nbytes = self._random.randint(1, 300)
            tail = self._random.choice((bytes(nbytes), self._random.randbytes(nbytes)))
            path = _newest_segment(disk)
            _replace(disk, path, disk.read(path, 0, disk.nbytes(path)) + tail)

    def _whole_log(self) -> None:
        """Lose it: all that it had is in a checkpoint only after a graceful end."""
        with self._faults.on_a_copy() as disk:
            for segment in segments(disk, LOG):
                disk.remove(segment.path)
            ending = Ending.read(disk, FOLDER)
            if self._witness.promise.is_sealed:
                self._witness.bring_back(self._settings())
            elif ending and ending.step < 0:
                self._refuse()

    def _sealed_end(self) -> None:
        """Lose the newest checkpoint, and the last step of the log too."""
        with self._faults.on_a_copy() as disk:
            reader, kind = _read(disk)
            is_needed = self._witness.promise.good[1] < self._witness.promise.step
            if kind in (Kind.APPLIED, Kind.LESSENED) and is_needed:
                path = _newest_segment(disk)
                data = disk.read(path, 0, reader.end - 1)
                _replace(disk, path, data)
                self._flip_in_checkpoint(disk)
                self._refuse()

    def _refuse(self) -> None:
        self._witness.refuse(self._settings())

    def _settings(self) -> Settings:
        return self._random.choice(_ANY)

    def _flip_in_checkpoint(self, disk: VirtualDisk) -> None:
        folder = FOLDER / "checkpoints"
        newest = max(n for n in disk.names(folder) if n.replace("-step-", "").isdigit())
        name = self._random.choice(disk.names(folder / newest))
        self._flip(disk, folder / newest / name)

    def _flip(self, disk: VirtualDisk, path: Path, below: int | None = None) -> None:
        """Change a bit of a file, below some byte if one is said."""
        data = bytearray(disk.read(path, 0, disk.nbytes(path)))
        data[self._random.randrange(below or len(data))] ^= 1 << self._random.randrange(
            8
        )
        _replace(disk, path, bytes(data))


def _newest_segment(disk: VirtualDisk) -> Path:
    return segments(disk, LOG)[-1].path


def _read(disk: VirtualDisk) -> tuple[Reader, Kind | None]:
    """Read the log's newest segment; return what its last whole record is, too."""
    reader, kind = Reader(disk, _newest_segment(disk)), None
    try:
        for record in reader.records():
            kind = Kind(record.frame.kind)
    except NotWholeError:
        pass
    return reader, kind


def _replace(disk: VirtualDisk, path: Path, data: bytes) -> None:
    disk.remove(path)
    writer = disk.create(path)
    writer.write([data])
    writer.sync()
    disk.sync_folder(path.parent)
