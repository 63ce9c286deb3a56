"""Grafana's dashboard: it asks for what there is, of where it is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
OF_PROMETHEUS = {"ALERTS"}


def values(key: str, tree: Any) -> Iterator[Any]:
    """Yield what is under a key anywhere in a JSON document."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree[key]
        tree = tree.values()
    elif not isinstance(tree, list):
        return
    for branch in tree:
        yield from values(key, branch)


def metrics(expression: str) -> set[str]:
    """Return the names in a query that are those of metrics."""
    # Without strings, labels and times; a function or an aggregation has a bracket.
    labels = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
    bare = re.sub(rf'"[^"]*"|\{{[^}}]*\}}|\[[^]]*\]|{labels}', " ", expression)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return {*names} - {"and", "or", "unless", "bool"}


@pytest.fixture(scope="module")
def dashboard() -> Any:
    """Read it."""
    return json.loads((GRAFANA / "dashboards" / "asyncps.json").read_text())


def test_every_metric_of_the_dashboard_is_one_that_there_is(
    dashboard: Any, exported: set[str]
) -> None:
    """Of the server, or recorded by the rules: else a panel stays empty."""
    recorded = {*re.findall(r"record: (\S+)", RULES.read_text())}

    shown = [metrics(expression) for expression in values("expr", dashboard)]

    assert len(shown) > 20
    assert all(shown)
    assert set().union(*shown) <= exported | recorded | OF_PROMETHEUS
    assert recorded - {"asyncps:judged_pushes:rate5m"} <= set().union(*shown)


def test_every_query_of_the_dashboard_is_one_for_prometheus(
    dashboard: Any, promtool: Any, tmp_path: Path
) -> None:
    """As rules, which Prometheus's own tool can check."""
    expressions = [
        each.replace("$__rate_interval", "1m") for each in values("expr", dashboard)
    ]
    rules = [
        {"record": "x", "labels": {"number": str(number)}, "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    file = tmp_path / "rules.json"  # JSON is YAML.
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))

    checked = promtool("check", "rules", str(file))

    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_dashboard_asks_the_source_that_is_provisioned(dashboard: Any) -> None:
    """By its uid, which Grafana would make up itself if it had none."""
    provisioned = (GRAFANA / "provisioning/datasources/prometheus.yml").read_text()

    [uid] = re.findall(r"^    uid: (\S+)$", provisioned, re.M)

    assert {source["uid"] for source in values("datasource", dashboard)} == {uid}


def test_prometheus_takes_its_configuration(promtool: Any) -> None:
    """With the rules that are shipped beside it."""
    file = ROOT / "deploy" / "prometheus" / "prometheus.yml"

    checked = promtool("check", "config", str(file))

    assert (checked.returncode, checked.stderr) == (0, "")
    assert "14 rules found" in checked.stdout
