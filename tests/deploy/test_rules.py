"""The Prometheus rules that are shipped, checked by Prometheus's own tool."""

import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DOCUMENT = ROOT / "docs" / "prometheus.md"


def test_the_rules_are_rules(promtool: Any) -> None:
    """Prometheus would load them."""
    checked = promtool("check", "rules", str(RULES))

    assert (checked.returncode, checked.stderr) == (0, "")
    assert "14 rules found" in checked.stdout


def test_the_alerts_tell_bad_runs_from_good_ones(promtool: Any, tmp_path: Path) -> None:
    """From a server that is gone to one that is there again."""
    for file in (RULES, Path(__file__).parent / "rules_test.yml"):
        shutil.copy(file, tmp_path)

    tested = promtool("test", "rules", str(tmp_path / "rules_test.yml"))

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_of_rules_and_documents_is_one_that_the_server_has(
    exported: set[str],
) -> None:
    """A name that nobody exports makes an alert that never comes.

    And what is exported is documented.
    """
    families = {
        name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        for name in exported
        if name.startswith("asyncps_")
    }

    text = RULES.read_text()
    documented = {*re.findall(r"^\| `(asyncps_\w+)`", DOCUMENT.read_text(), re.M)}
    used = {*re.findall(r"\basyncps_[a-z_]+", text)}
    assert documented == families
    assert {name.removesuffix("_bucket") for name in used} <= families
    assert len(used) >= 6
    recorded = {*re.findall(r"record: (\S+)", text)}
    assert {*re.findall(r"\basyncps:\w+(?::\w+)*", text)} == recorded
