"""The variables of a checkpoint as a file for other programs."""

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from psserver.durability import arrayfile
from psserver.durability.disk import Disk, RealDisk, Writer
from pswire.body import Body


def write(variables: Body, output: Path, style: str | None = None) -> None:
    """Write variables under their own names: all of them or, on any error, nothing.

    Args:
        variables: All of a model.
        output: A file, or for orbax a folder, that is not there yet.
        style: One of `STYLES`; None: as the output's name ends.

    Raises:
        OSError: The output is there already, or cannot be written.
        ValueError: The format is unknown, or has no way to say what a variable is.
        ModuleNotFoundError: It needs a package that is not installed.
    """
    style = style or output.suffix.removeprefix(".")
    if style not in STYLES:
        raise ValueError(
            "output: expected a name that ends with .npz or .safetensors, or another "
            f"format to be asked for, got {output}"
        )
    if output.exists():
        raise OSError(f"output: expected a new name, got {output}, which is there")
    try:
        STYLES[style](variables, output.absolute())
    except OSError as error:
        raise OSError(
            f"output: expected {output} to be written, got {error.strerror or error}"
        ) from error


def _to_npz(variables: Body, output: Path) -> None:
    for spec in variables.layout:
        if spec.dtype.kind == "V":  # None of numpy's own, such as bfloat16.
            raise ValueError(
                f"{spec.name}: expected a dtype of numpy's own for .npz, "
                f"got {spec.dtype}; .safetensors has it"
            )
    _replace(output, lambda disk, path: _write_npz(disk, path, variables))


def _to_safetensors(variables: Body, output: Path) -> None:
    _replace(output, lambda disk, path: arrayfile.write(disk, path, variables))


def _to_orbax(variables: Body, output: Path) -> None:
    try:
        import orbax.checkpoint as orbax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"orbax: expected {error.name}, which "
            'pip install "asyncps[orbax]" brings, got none'
        ) from error
    for spec in variables.layout:
        if not spec.nbytes:
            raise ValueError(
                f"{spec.name}: expected an array with elements for orbax, got {spec}; "
                ".safetensors has it"
            )
    with orbax.StandardCheckpointer() as checkpointer:  # It gives the name last, too.
        checkpointer.save(output, dict(variables))
        checkpointer.wait_until_finished()


STYLES: dict[str, Callable[[Body, Path], None]] = {
    "npz": _to_npz,
    "safetensors": _to_safetensors,
    "orbax": _to_orbax,
}
"""What can be written, and how."""


def _replace(output: Path, put: Callable[[Disk, Path], object]) -> None:
    disk, aside = RealDisk(), output.with_name(f".{output.name}.part")
    with suppress(FileNotFoundError):
        disk.remove(aside)  # Of a command that was killed.
    try:
        put(disk, aside)
        disk.rename(aside, output)
    except BaseException:
        with suppress(OSError):
            disk.remove(aside)
        raise
    disk.sync_folder(output.parent)


def _write_npz(disk: Disk, path: Path, variables: Body) -> None:
    # Not by numpy's own function, which takes names for arguments: "file" is one.
    with closing(disk.create(path)) as file:
        with ZipFile(_Stream(file), "w") as archive:
            for name, array in variables.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        file.sync()


class _Stream:
    """A file as `ZipFile` wants it."""

    def __init__(self, file: Writer) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write([data])
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...
