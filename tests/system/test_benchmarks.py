"""The benchmark runs from end to end; what it measures, no test decides."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases import CASES

ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 240
_NO_LINK = "expected root's right to network namespaces and their devices, got "

# Sees that the program to be run is not allowed them, not even as root.
_WITHOUT_NAMESPACES = """
import ctypes, os, sys

PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
"""


@pytest.mark.long
def test_a_quick_run_measures_every_case(tmp_path: Path) -> None:
    """Every figure has its limit, of the same run, and what was promised of it."""
    done, figures, errors = _run(tmp_path, "--quick")

    # Where there can be no link, every other case is measured all the same.
    assert all(text.startswith(_NO_LINK) for text in errors.values()), errors
    assert {*errors} <= {"link"}
    assert done.returncode == (1 if errors else 0), done.stdout + done.stderr
    measured = {name: case for name, case in CASES.items() if name not in errors}
    assert {figure["case"] for figure in figures} == {*measured}
    assert sum(len(case.claims) for case in measured.values()) == len(figures)
    for figure in figures:
        assert math.isfinite(figure["ratio"]["median"]), figure
        assert figure["quick"] is True


def test_without_the_right_to_a_link_its_case_is_left_out(tmp_path: Path) -> None:
    """It says so in a line, and the next case runs."""
    options = "--quick", "--only", "link", "--only", "rules"

    done, figures, errors = _run(tmp_path, *options, start=("-c", _WITHOUT_NAMESPACES))

    assert done.returncode == 1
    assert f"link: {_NO_LINK}" in done.stdout
    assert {*errors} == {"link"}
    assert {figure["case"] for figure in figures} == {"rules"}


def _run(
    tmp_path: Path, *options: str, start: tuple[str, str] = ("-m", "benchmarks")
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]], dict[str, str]]:
    """Run the benchmark, and return its figures, and why cases have none."""
    output = tmp_path / "results.jsonl"
    done = subprocess.run(
        [sys.executable, *start, *options, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    records = [json.loads(line) for line in output.read_text().splitlines()]
    figures = [record for record in records if "error" not in record]
    errors = {r["case"]: r["error"] for r in records if "error" in r}
    return done, figures, errors
