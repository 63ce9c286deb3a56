"""The Prometheus rules that are shipped, checked by Prometheus's own tool."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import psserver
import psworker

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DOCUMENT = ROOT / "docs" / "prometheus.md"


def test_the_rules_are_rules(promtool: Any) -> None:
    """Prometheus would load them."""
    checked = promtool("check", "rules", str(RULES))

    assert (checked.returncode, checked.stderr) == (0, "")
    assert "13 rules found" in checked.stdout


def test_the_alerts_tell_bad_runs_from_good_ones(promtool: Any, tmp_path: Path) -> None:
    """A starved worker, most work lost, no step, broken pushes, disks, a restart."""
    for file in (RULES, Path(__file__).parent / "rules_test.yml"):
        shutil.copy(file, tmp_path)

    tested = promtool("test", "rules", str(tmp_path / "rules_test.yml"))

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_of_rules_and_documents_is_one_that_the_server_has(
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    scrape: Callable[[psserver.Server], dict[tuple[str, ...], float]],
    tmp_path: Path,
) -> None:
    """A name that nobody exports makes an alert that never comes.

    And what is exported is documented.
    """
    settings: dict[str, Any] = {"durability": "log", "data_dir": tmp_path}
    server = start_server(http_port=0, max_staleness=0, **settings)
    with connect(server.address) as client:
        client.initialize({"w": np.zeros(1, np.float32)})
        client.push({"w": np.ones(1, np.float32)}, client.pull(), value=1.0)

    exported = {
        name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        for (name, *_) in scrape(server)
        if name.startswith("asyncps_")
    }

    documented = {*re.findall(r"^\| `(asyncps_\w+)`", DOCUMENT.read_text(), re.M)}
    used = {*re.findall(r"\basyncps_[a-z_]+", RULES.read_text())}
    assert documented == exported
    assert {name.removesuffix("_bucket") for name in used} <= exported
    assert len(used) >= 6
