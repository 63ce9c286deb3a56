"""The Prometheus rules that are shipped, checked by Prometheus's own tool."""

import re
import shutil
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


def test_the_rules_are_rules(promtool: Any) -> None:
    """Prometheus would load them."""
    checked = promtool("check", "rules", str(RULES))

    assert (checked.returncode, checked.stderr) == (0, "")
    assert "10 rules found" in checked.stdout


def test_the_alerts_tell_bad_runs_from_good_ones(promtool: Any, tmp_path: Path) -> None:
    """A starved worker, most work lost, no step, broken pushes, a restart."""
    for file in (RULES, Path(__file__).parent / "rules_test.yml"):
        shutil.copy(file, tmp_path)

    tested = promtool("test", "rules", str(tmp_path / "rules_test.yml"))

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_of_the_rules_is_one_that_the_server_has(scrape: Any) -> None:
    """A name that nobody exports makes an alert that never comes."""
    named = {*re.findall(r"\basyncps_[a-z_]+", RULES.read_text())}

    exported = {
        sample.name
        for family in text_string_to_metric_families(scrape())
        for sample in family.samples
    }

    assert named - exported == set()
    assert len(named) >= 6
