"""Runs the cases as `python -m benchmarks`."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from rich.console import Console

from benchmarks import machine
from benchmarks.cases import CASES
from benchmarks.figures import Figure, weigh
from benchmarks.processes import ChildError
from benchmarks.rig import MachineError, Rig
from benchmarks.sites import Effort
from benchmarks.table import draw
from pswire.signals import interruptible

_WIDTH = 200  # Where nobody looks at columns, as in a log.
_INTERRUPTED = 130


@click.command()
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often every contestant has its turn; what takes long has at most 3.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(CASES)),
    help="A case to run. May be repeated.  [default: all]",
)
@click.option(
    "--quick",
    is_flag=True,
    help="One round, a few cycles, no large model: does everything run?",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parent / "results.jsonl",
    help="Where the figures go, one JSON line each.  [default: beside this module]",
)
def main(rounds: int, only: tuple[str, ...], quick: bool, output: Path) -> None:
    """Measure the server against what this machine can do at best."""
    effort = Effort(1 if quick else rounds, quick)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    note = "; quick: sizes over 5 MB are 5 MB" if effort.quick else ""
    console.print(f"{machine.describe()}; rounds: {effort.rounds}{note}\n")
    complete = True
    with output.open("w") as lines, interruptible():
        try:
            for name, result in _run(only or tuple(CASES), effort):
                if isinstance(result, str):
                    complete = False
                    records = [{"case": name, "error": result}]
                    console.print(f"{name}: {result}\n", style="red", markup=False)
                else:
                    records = [f.to_json() | {"quick": quick} for f in result]
                    console.print(draw(name, result))
                lines.writelines(json.dumps(record) + "\n" for record in records)
                lines.flush()
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
    sys.exit(0 if complete else 1)


def _run(
    names: Iterable[str], effort: Effort
) -> Iterator[tuple[str, list[Figure] | str]]:
    """Yield the figures of every case, or why there are none."""
    with Rig(effort) as rig:
        for name in names:
            print(f"{name} ...", file=sys.stderr)
            case = CASES[name]
            try:
                yield name, weigh(name, case.claims, case.run(rig))
            except (ChildError, MachineError) as error:
                yield name, str(error)
            rig.clear()


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
