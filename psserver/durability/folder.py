"""One checkpoint on a disk: a folder of a file for the arrays, one for the rest."""

from collections.abc import Container, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from psserver.checkpoint import Checkpoint, named
from psserver.durability import arrayfile, sealed
from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError
from psserver.durability.manifest import Manifest
from pswire.body import AnyArrays, Body
from pswire.errors import VariableMismatchError
from pswire.inspection import VARIABLES
from pswire.layout import ArraySpec, Layout

_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"
NAMES = frozenset({_ARRAYS, _MANIFEST})
"""Its files."""

_MAX_MANIFEST_NBYTES = 2**30


def write(disk: Disk, folder: Path, checkpoint: Checkpoint, saved: str) -> None:
    """Write a checkpoint into a new folder, whose own name is not synced.

    Args:
        disk: Where to.
        folder: Its name ends with `-step-` and the step.
        checkpoint: What is kept.
        saved: When, in UTC, for people.

    Raises:
        OSError: The disk does not take it; there may be a part of it.
        ValueError: A slot's dtype is none that can be written.
    """
    disk.make_folder(folder)
    whole = named(checkpoint.variables, checkpoint.slots.arrays)
    arrays: AnyArrays = {**whole, **checkpoint.columns}
    digests = arrayfile.write(disk, folder / _ARRAYS, arrays)
    with closing(disk.create(folder / _MANIFEST)) as file:
        file.write([sealed.encode(Manifest(checkpoint, digests, saved).to_json())])
        file.sync()
    disk.sync_folder(folder)


def nbytes(disk: Disk, folder: Path) -> int:
    """Return how much a checkpoint takes, in bytes.

    Raises:
        OSError: The disk does not tell.
    """
    return sum(disk.nbytes(folder / name) for name in (_ARRAYS, _MANIFEST))


def describe(disk: Disk, folder: Path, now: float = 0.0) -> Manifest:
    """Return what a checkpoint is; its arrays are not looked at.

    Raises:
        OSError: The disk does not give it.
        DataDirectoryError: A byte of it is not as it was written.
    """
    path = folder / _MANIFEST
    if (size := disk.nbytes(path)) > _MAX_MANIFEST_NBYTES:
        raise DataDirectoryError(
            f"{path}: expected at most {_MAX_MANIFEST_NBYTES} bytes, got {size}"
        )
    with _telling(path):
        manifest = Manifest.from_json(sealed.decode(disk.read(path, 0, size)), now)
        step = manifest.checkpoint.step
        if not folder.name.endswith(f"-step-{step}"):
            raise ValueError(f"step: expected that of the folder, got {step}")
    return manifest


def verify(disk: Disk, folder: Path) -> Manifest:
    """Read all of a checkpoint, keep nothing, and return what it is.

    Raises:
        OSError: The disk does not give it.
        DataDirectoryError: A byte of it is not as it was written.
    """
    manifest = describe(disk, folder)
    with _telling(folder / _MANIFEST):
        for _ in arrayfile.read(disk, folder / _ARRAYS, manifest.digests):
            pass
    return manifest


def read(disk: Disk, folder: Path, now: float) -> Checkpoint:
    """Read a checkpoint; `now` is in seconds.

    Raises:
        OSError: The disk does not give it.
        DataDirectoryError: A byte of it is not as it was written.
    """
    manifest = describe(disk, folder, now)
    with _telling(folder / _MANIFEST):
        # Before memory is taken: this compares with the file's size.
        pieces = arrayfile.read(disk, folder / _ARRAYS, manifest.digests)
        variables, slots = _unwritten(manifest.digests, manifest.checkpoint.tables)
        arrays = named(variables, slots)
        for spec, at, piece in pieces:
            memory = arrayfile.bytes_of(arrays[spec.name])
            memory[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
    kept = replace(manifest.checkpoint.slots, arrays=dict(slots.freeze()))
    return replace(manifest.checkpoint, variables=variables.freeze(), slots=kept)


def _unwritten(specs: Iterable[ArraySpec], tables: Container[str]) -> tuple[Body, Body]:
    """Take memory for the variables and the slots that `named` has named so."""
    variables: dict[str, ArraySpec] = {}
    slots: list[ArraySpec] = []
    for spec in specs:
        if spec.name.startswith(VARIABLES):
            variables[spec.name.removeprefix(VARIABLES)] = spec
        else:
            slots.append(spec)
    layout = Layout.of(variables).by_rows(tables)
    return Body.unwritten(layout), Body.unwritten(Layout(tuple(slots)))


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Say which file it is that holds something wrong."""
    try:
        yield
    except (ValueError, VariableMismatchError) as error:
        raise DataDirectoryError(f"{path}: {error}") from error
