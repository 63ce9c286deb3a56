"""The study runs from end to end, and the document shows what it has measured."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study import figure, tables
from benchmarks.study.cases import GROUPS, Options, kind
from benchmarks.study.runs import Conditions, Run, Study
from benchmarks.study.task import OWN_DIGIT, part
from examples import digits

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "choosing-a-limit.md"
_TIMEOUT_S = 240

CONDITIONS = Conditions(machine="2 CPUs", seconds=4.0, seeds=3, target=0.93)
RUN = Run(
    group="4-equal",
    options="--max-staleness 8",
    seed=0,
    applied=[30, 10],
    dropped=[0, 10],
    staleness=[1.0, 9.0],
    most_stale=12,
    accuracy=0.95,
    own_accuracy=0.5,
    loss=0.25,
    target_s=2.0,
    target_pushes=40,
)
PLACES = "".join(
    f"<!-- study: {name} -->\nold\n<!-- end -->\n"
    for name in ("conditions", "ages", *GROUPS)
)


def rows(study: Study) -> list[tuple[str, str]]:
    """Return the table and the options of every run."""
    return [(run.group, run.options) for run in study.runs]


@pytest.mark.long
def test_a_quick_study_runs_with_every_kind_of_row(tmp_path: Path) -> None:
    """With fewer workers, each of which pushes."""
    runs = tmp_path / "runs.jsonl"

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.study", "--quick", "--runs", str(runs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    study = Study.read(runs)
    ran = [kind(GROUPS[name], options) for name, options in rows(study)]
    assert sorted(ran) == sorted(
        {kind(g, row) for g in GROUPS.values() for row in g.rows}
    )
    for run in study.runs:
        assert len(run.applied) == len(run.dropped) == 2
        assert sum(run.applied) >= 1
        assert 0 <= run.accuracy <= 1


def test_the_document_shows_the_runs_beside_it() -> None:
    """All of its tables and its figure; nothing was typed, and no row is missing."""
    study = Study.read(DOCUMENT.with_suffix(".jsonl"))

    text, drawing = tables.fill(DOCUMENT.read_text(), study), figure.draw(study)

    assert text == DOCUMENT.read_text()
    assert drawing == DOCUMENT.with_suffix(".svg").read_text()
    each = [(name, row) for name, group in GROUPS.items() for row in group.rows]
    assert rows(study) == each * study.conditions.seeds


def test_a_cell_is_the_median_with_the_least_and_the_most() -> None:
    """A run that never got to the target counts as the slowest."""
    study = Study(
        CONDITIONS,
        [
            RUN,
            replace(RUN, seed=1, target_s=None, target_pushes=None),
            replace(RUN, seed=2, target_s=3.0, dropped=[0, 20]),
        ],
    )

    lines = tables.fill(PLACES, study).splitlines()

    assert (
        "| `--max-staleness 8` | 20.0 (20.0 to 33.3) | 100 | 50 (33 to 50) "
        "| 3.0 (2.0 to never) | 40 (40 to never) | 95.0 | 50 | 0.25 |"
    ) in lines
    assert "old" not in lines


@pytest.mark.parametrize(
    "text",
    [
        PLACES.replace("4-equal", "5-equal"),
        PLACES.replace("<!-- study: ages -->", ""),
        PLACES * 2,
    ],
    ids=["unknown", "missing", "twice"],
)
def test_a_document_that_does_not_fit_is_not_filled(text: str) -> None:
    """A table that nobody makes any more would stay as it is for ever."""
    with pytest.raises(ValueError, match="document: expected places for"):
        tables.fill(text, Study(CONDITIONS, [RUN]))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_last_worker_alone_has_its_digit(count: int) -> None:
    """The parts are all images, each once, and nearly equal."""
    (_, labels), _ = digits.data()

    parts = [part(labels, index, count) for index in range(count)]

    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert sum((labels[each] == OWN_DIGIT).sum() for each in parts[:-1]) == 0
    sizes = [len(each) for each in parts]
    assert max(sizes) - min(sizes) <= count


def test_options_mean_what_the_commands_make_of_them() -> None:
    """Of an argument the last one counts."""
    text = "--rule sgd -a momentum=0.9 -a learning_rate=1 --max-staleness off"

    options = Options.parse(f"{text} --on-drop retry -a learning_rate=0.01")

    assert options == Options(
        rule="sgd",
        arguments={"momentum": 0.9, "learning_rate": 0.01},
        server={"max_staleness": None},
        training={"on_drop": "retry"},
    )
