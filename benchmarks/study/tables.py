"""The document's tables, each between two comments that name it."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isinf
from statistics import mean

from benchmarks.figures import Spread
from benchmarks.study.cases import GROUPS, Group
from benchmarks.study.runs import Run, Study

_PLACE = re.compile(r"(<!-- study: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOTHING_DROPPED = "--max-staleness off"
_OTHERS, _LAST = slice(None, -1), slice(-1, None)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a group's table.

    Attributes:
        head: What stands over it.
        value: Of one run; infinite: never.
        digits: After the point.
    """

    head: str
    value: Callable[[Run], float]
    digits: int = 0


_COLUMNS = (
    _Column("dropped, %", lambda run: 100 - run.applied_percent(), 1),
    _Column("others' applied, %", lambda run: run.applied_percent(_OTHERS)),
    _Column("last one's applied, %", lambda run: run.applied_percent(_LAST)),
    _Column("seconds to target", lambda run: _or_never(run.target_s), 1),
    _Column("pushes to target", lambda run: _or_never(run.target_pushes)),
    _Column("accuracy, %", lambda run: 100 * run.accuracy, 1),
    _Column("on its digit, %", lambda run: 100 * run.own_accuracy),
    _Column("loss", lambda run: run.loss, 2),
)


def fill(text: str, study: Study) -> str:
    """Return a document with a study's tables in the places that name them.

    Raises:
        ValueError: It has not one place for each of them.
    """
    tables = _tables(study)
    places = [match["name"] for match in _PLACE.finditer(text)]
    if sorted(places) != sorted(tables):
        raise ValueError(f"document: expected places for {[*tables]}, got {places}")
    return _PLACE.sub(
        lambda place: f"{place[1]}\n{tables[place['name']]}\n\n{place[3]}", text
    )


def _tables(study: Study) -> dict[str, str]:
    conditions = study.conditions
    said = (
        f"{conditions.machine}. A figure is the median of {conditions.seeds} runs of "
        f"{conditions.seconds:g} s each, with the least and the most of them. The "
        f"target is an accuracy of {100 * conditions.target:g} %."
    )
    groups = {name: _group(study.rows(name)) for name in GROUPS}
    return {"conditions": said, "ages": _ages(study), **groups}


def _group(rows: dict[str, list[Run]]) -> str:
    return _table(
        ("", *(column.head for column in _COLUMNS)),
        (
            (f"`{row}`", *(_cell(map(c.value, runs), c.digits) for c in _COLUMNS))
            for row, runs in rows.items()
        ),
    )


def _ages(study: Study) -> str:
    """Say how stale gradients are where none is dropped."""
    lines: dict[str, tuple[str, ...]] = {}
    for name, group in GROUPS.items():
        if runs := study.rows(name).get(_NOTHING_DROPPED):
            cells = (
                _cell((_mean(run.staleness[_OTHERS]) for run in runs), 1),
                _cell((_mean(run.staleness[_LAST]) for run in runs), 1),
                _cell((run.most_stale for run in runs), 0),
            )
            lines.setdefault(_who(group), cells)
    heads = ("staleness, in steps", "others, mean", "last one, mean", "most of all")
    return _table(heads, ((who, *cells) for who, cells in lines.items()))


def _who(group: Group) -> str:
    if group.slowdown == 1:
        return f"{group.workers} equal workers"
    return f"{group.workers} workers, the last {group.slowdown} times slower"


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return mean(known) if known else 0.0


def _or_never(value: float | None) -> float:
    return inf if value is None else value


def _cell(values: Iterable[float], digits: int) -> str:
    spread = Spread.of(list(values))
    median, least, most = (
        "never" if isinf(value) else f"{value:.{digits}f}"
        for value in (spread.median, spread.min, spread.max)
    )
    return median if least == most else f"{median} ({least} to {most})"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ("---", *("---:" for _ in heads[1:]))
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))
