"""The text of a status: every number that a person needs, and none that is cut off."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.statuses import QUIET
from pswire.counts import Counts, WorkerStatus
from pswire.display import summary
from pswire.status import Durability, Limits, Status

ROW = re.compile(
    r" *staleness +(\d+)(?:-(\d+))? +[█▏▎▍▌▋▊▉…]* +(\d+) (applied|dropped|judged)"
)


@pytest.fixture(autouse=True, scope="module")
def plain_terminal() -> Any:
    """Keep what the tests' own terminal is like out of the text."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        yield


def lines(status: Status) -> list[str]:
    """Return the text's lines, without the blanks that fill them up."""
    file = io.StringIO()
    summary.show(status, file)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def rows(status: Status) -> list[tuple[int, int, int, str]]:
    """Return the drawn bars: first and last staleness, pushes, what became of them."""
    found = [ROW.fullmatch(line) for line in lines(status)[6:]]
    assert None not in found
    return [(int(r[1]), int(r[2] or r[1]), int(r[3]), r[4]) for r in found if r]


def test_a_status_is_told_in_full() -> None:
    """Exactly this text; off a terminal there is no colour in it."""
    counts = Counts(5, 3, 1, {"NON_FINITE": 1, "STEP_READ": 2}, snapshot_gone=1)

    got = lines(
        replace(
            QUIET,
            step=5,
            rule="sgd(learning_rate=1)",
            pushes_per_s=0.84,
            steps_per_s=0.5,
            recent_drop_rate=0.25,
            loss=0.012345,
            counts=counts,
            staleness={0: 4, 2: 1, 3: 3},
            workers=(
                WorkerStatus("anna", Counts(5, 1), 0, 0.25, 3, 0.84),
                WorkerStatus("bo", Counts(0, 2), 2, 61.0, 2),
                WorkerStatus("cleo", Counts(0, 10), 10, 59.0, 10),
            ),
        )
    )

    assert got == [
        "asyncps: step 5, rule sgd(learning_rate=1), limit 2 steps, generation g",
        "pushes: 5 applied, 3 dropped (1 SNAPSHOT_GONE), 1 duplicate, "
        "3 rejected (1 NON_FINITE, 2 STEP_READ)",
        "drop rate 37.5% of 8 judged pushes",
        "last 10 s: drop rate 25.0%, 0.8 pushes/s, 0.5 steps/s, loss 0.01235",
        "staleness: median 0, p90 3, p99 3, most 3 steps",
        "",
        "                 pushes                      drop  in a  longest   last",
        "worker  state        /s  applied  dropped    rate   row      run   seen",
        "───────────────────────────────────────────────────────────────────────",
        "anna    active      0.8        5        1   16.7%     0        3    0 s",
        "bo      silent      0.0        0        2  100.0%     2        2  1 min",
        "cleo    starved     0.0        0       10  100.0%    10       10   59 s",
        "",
        f"staleness 0  {'█' * 40}  4 applied",
        f"staleness 1  {' ' * 40}  0 applied",
        f"staleness 2  {'█' * 10:40}  1 applied",
        f"staleness 3  {'█' * 30:40}  3 dropped",
    ]


def test_a_server_that_waits_for_its_first_worker_says_so() -> None:
    """There are no tables, and nothing is divided by zero."""
    got = lines(replace(QUIET, initialized=False, limits=Limits(None, None, 1, 1)))

    assert got == [
        "asyncps: step 0, rule sgd, limit off, generation g",
        "no variables yet: the first worker brings them",
        "pushes: 0 applied, 0 dropped, 0 duplicate, 0 rejected",
        "drop rate 0.0% of 0 judged pushes",
        "last 10 s: no push was judged",
    ]


@pytest.mark.parametrize(
    ("durability", "told"),
    [
        (Durability("checkpoint"), "no checkpoint yet; 1327 steps at risk"),
        (
            Durability("checkpoint", 1200, 7300.0, saves=3, failures=2),
            "checkpoint of step 1200, 2 h old; 127 steps at risk, 2 failed to be saved",
        ),
        (
            Durability("checkpoint", 1328, 0.0),
            "checkpoint of step 1328, 0 s old; 0 steps at risk",
        ),
        (
            Durability("log", 0, 59.6, corrupt=1),
            "log, all 1327 steps; checkpoint of step 0, 60 s old, "
            "1 set aside as corrupt",
        ),
    ],
)
def test_what_outlasts_the_server_is_told(durability: Durability, told: str) -> None:
    """Where anything does: how much, and what has gone wrong."""
    got = lines(replace(QUIET, step=1327, durability=durability))

    assert got[-1] == f"kept: {told}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "limit 9 steps, policy polynomial:0.5"),
        ({"policy_limit": 3}, "limit 3 steps, policy polynomial:0.5"),
        ({"policy_limit": 20}, "limit 9 steps, policy polynomial:0.5"),
    ],
)
def test_a_policy_is_told_beside_the_limit_of_now(
    changes: dict[str, Any], told: str
) -> None:
    """And the mean of its factors, if any was less than 1."""
    limits = Limits(9, None, 1, 1, "polynomial:0.5")
    status = replace(QUIET, limits=limits, counts=Counts(8, 0), name="lab", **changes)

    full = lines(status)
    part = lines(replace(status, withheld=2.0))

    assert full[0] == f"lab: step 0, rule sgd, {told}, generation g"
    assert part == [*full, "factor: mean 0.75 of the applied pushes"]


def test_what_was_left_out_of_pushes_is_told() -> None:
    """Where anything was."""
    status = replace(QUIET, counts=Counts(8, 0))

    told = lines(replace(status, dropped_variables=5))

    assert told == [*lines(status), "left out of applied pushes: 5 variables"]


def test_who_waits_for_its_turn_is_told_and_how_long_all_have() -> None:
    """Whoever is gone does not wait."""
    workers = (
        WorkerStatus("ann", Counts(), 0, 0.0, waiting=True),
        WorkerStatus("bob", Counts(), 0, 61.0, waiting=True),
        WorkerStatus("cleo", Counts(), 0, 0.0),
    )

    told = lines(replace(QUIET, uptime_s=99.0, workers=workers, waited_s=75.0))

    assert told[4] == "pulls have waited 1 min for their turns"
    assert [line.split()[:2] for line in told[-3:]] == [
        ["ann", "waiting"],
        ["bob", "silent"],
        ["cleo", "active"],
    ]


def test_a_limit_that_has_changed_parts_no_bars() -> None:
    """Under it there may be drops of an earlier one, and above it applied pushes."""
    status = replace(QUIET, staleness={1: 5, 3: 4}, counts=Counts(7, 2))

    assert rows(status) == [
        (0, 0, 0, "judged"),
        (1, 1, 5, "judged"),
        (2, 2, 0, "judged"),
        (3, 3, 4, "judged"),
    ]


def _parted(histogram: dict[int, int], limit: int | None) -> Counts:
    over = [n for age, n in histogram.items() if limit is not None and age > limit]
    return Counts(sum(histogram.values()) - sum(over), sum(over))


@settings(deadline=None, derandomize=True)
@given(
    histogram=st.dictionaries(
        st.one_of(st.integers(0, 40), st.integers(0, 5000)),
        st.integers(1, 10**6),
        min_size=1,
        max_size=30,
    ),
    limit=st.one_of(st.none(), st.integers(-3, 40), st.integers(-100, 6000)),
)
@example(histogram={0: 1, 17: 1}, limit=0)
@example(histogram={0: 3, 31: 2}, limit=8)
@example(histogram={5: 2}, limit=-1)
def test_every_push_is_in_one_bar_and_no_bar_crosses_the_limit(
    histogram: dict[int, int], limit: int | None
) -> None:
    """The bars lie side by side from 0 on, and are so few that they fit a screen."""
    bars = rows(
        replace(
            QUIET,
            staleness=dict(sorted(histogram.items())),
            limits=Limits(limit, None, 1, 1),
            counts=_parted(histogram, limit),
        )
    )

    ends = [last for _, last, _, _ in bars]
    assert [first for first, _, _, _ in bars] == [0, *(end + 1 for end in ends[:-1])]
    assert ends[-1] >= max(histogram)
    assert len(bars) <= 17
    for first, last, pushes, fate in bars:
        ages = range(first, last + 1)
        assert pushes == sum(n for age, n in histogram.items() if age in ages)
        late = {limit is not None and age > limit for age in (first, last)}
        assert late == {fate == "dropped"}


@pytest.mark.parametrize(
    "name", ["[bold]x", "a[/b]", ":warning:", "gpu[0]", f"trainer-{'x' * 60}-0"]
)
def test_a_worker_s_name_is_told_as_it_is(name: str) -> None:
    """A worker names itself, so it may look like a command to colour the text."""
    got = lines(replace(QUIET, workers=(WorkerStatus(name, Counts(), 0, 0.0),)))

    assert any(line.startswith(f"{name} ") for line in got)


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_on_a_narrow_terminal_nothing_is_left_out(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and figures are folded: all their letters are there."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    name, counts = "trainer-" + "x" * 60, Counts(123_456_789, 1)
    file = io.StringIO()
    file.isatty = lambda: True  # type: ignore[method-assign]

    summary.show(replace(QUIET, workers=(WorkerStatus(name, counts, 0, 0.0),)), file)

    text = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())
    assert "…" not in text
    assert text.count("x") == 60
    assert max(map(len, text.splitlines())) <= int(columns)


def test_large_numbers_are_not_cut_off() -> None:
    """A number that lost its end would be believed."""
    bars = rows(
        replace(
            QUIET, staleness={123_456: 123_456_789_012}, limits=Limits(None, None, 1, 1)
        )
    )

    assert bars[-1][2:] == (123_456_789_012, "applied")
