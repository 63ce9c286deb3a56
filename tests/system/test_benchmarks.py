"""The benchmark runs from end to end; what it measures, no test decides."""

import json
import math
import subprocess
import sys
from pathlib import Path

from benchmarks.cases import CASES

ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 240


def test_a_quick_run_measures_every_case(tmp_path: Path) -> None:
    """Every figure has its limit, of the same run, and what was promised of it."""
    output = tmp_path / "results.jsonl"

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    figures = [json.loads(line) for line in output.read_text().splitlines()]
    assert {figure["case"] for figure in figures} == set(CASES)
    assert sum(len(case.claims) for case in CASES.values()) == len(figures)
    for figure in figures:
        assert math.isfinite(figure["ratio"]["median"]), figure
        assert figure["quick"] is True
