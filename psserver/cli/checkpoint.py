"""The `psserver checkpoint` commands, for the files of a data directory."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from psserver.cli import complaints

if TYPE_CHECKING:
    from psserver.durability.checkpoints import Checkpoints

_data_dir = click.argument(
    "data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
_as_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@click.group()
def checkpoint() -> None:
    """Look at the checkpoints of a data directory, or take one out."""


@checkpoint.command()
@_data_dir
@_as_json
def ls(data_dir: Path, as_json: bool) -> None:
    """List the checkpoints in DATA_DIR, oldest first, after reading each whole.

    Exits with 1 unless all are good.
    """
    from psserver.durability import listing
    from pswire.display import summary

    with _clear_errors():
        rows = list(listing.rows(_open(data_dir)))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        summary.put(listing.table(rows), sys.stdout)
    sys.exit(0 if all(row["state"] == listing.GOOD for row in rows) else 1)


@checkpoint.command()
@_data_dir
@click.argument("which", required=False, metavar="[NAME|STEP]")
@_as_json
def show(data_dir: Path, which: str | None, as_json: bool) -> None:
    """Print what one checkpoint in DATA_DIR holds, by default the newest."""
    from psserver.durability import listing
    from pswire.display import summary

    with _clear_errors():
        checkpoints = _open(data_dir)
        name = checkpoints.find(which)
        with _naming_a_good_one(checkpoints, name):
            manifest = checkpoints.describe(name)
    if as_json:
        click.echo(json.dumps({"name": name, **manifest.to_json()}, indent=2))
    else:
        summary.put(listing.page(name, manifest), sys.stdout)


@checkpoint.command()
@_data_dir
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What to write: .npz, .safetensors or, for orbax, a folder.",
)
@click.option(
    "--step", type=int, metavar="STEP", help="Of which step.  [default: the newest]"
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["npz", "safetensors", "orbax"]),
    help="By default as the name of FILE ends.",
)
def export(data_dir: Path, output: Path, step: int | None, style: str | None) -> None:
    """Write the variables of a checkpoint in DATA_DIR for other programs."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # Orbax loads JAX.
    from psserver.durability import export as exports

    with _clear_errors():
        checkpoints = _open(data_dir)
        name = _find(checkpoints, step)
        with _naming_a_good_one(checkpoints, name):
            kept = checkpoints.load(name, now=0.0)
        exports.write(kept.variables, output, style)
    click.echo(f"{output}: {len(kept.variables)} variables of step {kept.step}")


def _open(data_dir: Path) -> "Checkpoints":
    from psserver.durability.checkpoints import FOLDER, Checkpoints
    from psserver.durability.disk import RealDisk

    disk = RealDisk()
    checkpoints = Checkpoints(disk, data_dir / FOLDER)
    if checkpoints.names():
        return checkpoints
    hint = ""
    for parent in data_dir.absolute().parents[:2]:  # It may be a checkpoint's folder.
        if Checkpoints(disk, parent / FOLDER).names():
            hint = f", which is a part of one: {parent}"
    raise click.ClickException(
        f"data_dir: expected a folder with checkpoints, got {data_dir}{hint}"
    )


def _find(checkpoints: "Checkpoints", step: int | None) -> str:
    steps = {name.rpartition("-")[2]: None for name in checkpoints.names()}
    if step is not None and str(step) not in steps:
        raise click.ClickException(f"step: expected {' or '.join(steps)}, got {step}")
    return checkpoints.find(None if step is None else str(step))


@contextmanager
def _naming_a_good_one(checkpoints: "Checkpoints", name: str) -> Iterator[None]:
    from psserver.durability import listing

    try:
        yield
    except OSError as error:
        good = listing.good_before(checkpoints, name)
        hint = f"; {good}, which is before it, is good" if good else ""
        raise click.ClickException(f"{complaints.told(error)}{hint}") from error


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(complaints.told(error)) from error
