"""Measures, or writes down what was measured, as `python -m benchmarks.study`."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import click

from benchmarks import machine
from benchmarks.processes import ChildError
from benchmarks.study import figure, tables
from benchmarks.study.cases import GROUPS, Group, kind
from benchmarks.study.crew import TARGET, Crew
from benchmarks.study.runs import Conditions, Run, Study, to_line
from pswire.signals import interruptible

_DOCUMENT = Path(__file__).parents[2] / "docs" / "choosing-a-limit.md"
_SECONDS = 4.0
_QUICK_WORKERS, _QUICK_SECONDS = 2, 0.2
_INTERRUPTED = 130


@click.command()
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often every row is run.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Each kind of row once, two workers, a moment each: does everything run?",
)
@click.option(
    "--runs",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_DOCUMENT.with_suffix(".jsonl"),
    help="What was measured, one JSON line each run.  [default: beside the document]",
)
@click.option(
    "--write",
    is_flag=True,
    help="Measure nothing: put the runs into the document's tables, and its figure.",
)
def main(seeds: int, quick: bool, runs: Path, write: bool) -> None:
    """Measure what each limit costs: some 25 minutes on two cores."""
    if write:
        study = Study.read(runs)
        _DOCUMENT.write_text(tables.fill(_DOCUMENT.read_text(), study))
        _DOCUMENT.with_suffix(".svg").write_text(figure.draw(study))
        return
    conditions = Conditions(
        machine=machine.describe(),
        seconds=_QUICK_SECONDS if quick else _SECONDS,
        seeds=1 if quick else seeds,
        target=TARGET,
    )
    groups = GROUPS
    rows = [(name, row) for name, group in GROUPS.items() for row in group.rows]
    if quick:
        groups = {name: g.smaller(_QUICK_WORKERS) for name, g in GROUPS.items()}
        rows = [*{kind(GROUPS[name], row): (name, row) for name, row in rows}.values()]
    with runs.open("w") as lines, interruptible():
        lines.write(to_line(conditions))
        try:
            for run in _measure(conditions, groups, rows):
                lines.write(to_line(run))
                lines.flush()
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except ChildError as error:
            sys.exit(str(error))


def _measure(
    conditions: Conditions,
    groups: Mapping[str, Group],
    rows: Sequence[tuple[str, str]],
) -> Iterator[Run]:
    # What slows the machine for a while then slows one run of many rows.
    turns = [
        (seed, name, row) for seed in range(conditions.seeds) for name, row in rows
    ]
    with closing(Crew()) as crew:
        # One that does not count: every worker compiles its gradient.
        largest = max(groups, key=lambda name: groups[name].workers)
        crew.train(largest, groups[largest], groups[largest].rows[0], 0, 1.0)
        began = time.monotonic()
        for number, (seed, name, row) in enumerate(turns, 1):
            run = crew.train(name, groups[name], row, seed, conditions.seconds)
            click.echo(
                f"{number} of {len(turns)}, {time.monotonic() - began:.0f} s: "
                f"{name} {row}: accuracy {run.accuracy:.3f}",
                err=True,
            )
            yield run


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.study")
