"""Alerts and dashboard: they ask for metrics that exist, and the runbook knows every alert."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.render import ROOT
from serve.problems import STATUS_OF
from serve.telemetry import Instruments

MONITORING = ROOT / "cluster" / "monitoring"
FUNCTIONS = r"(?:sum|avg|max|count|rate|increase|abs|absent|scalar|histogram_quantile|last_over_time|by|le|or|offset)\b"
RAY_PANELS = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names that the server's /metrics has once each metric was used, and that Ray's own dashboards ask for."""
    instruments = Instruments()
    for metric in vars(instruments).values():
        names = getattr(metric, "_labelnames", ())
        if names:
            metric.labels(*names)
    ours = {
        sample.name
        for family in text_string_to_metric_families(instruments.text().decode())
        for sample in family.samples
    }
    panels = "".join(path.read_text() for path in RAY_PANELS.glob("*_panels.py"))
    return {"up"} | ours | set(re.findall(r"\bray_[a-z_]+", panels))


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((MONITORING / "dashboard.json").read_text())["panels"])


def metrics_of(expression: str) -> set[str]:
    """The metrics of a PromQL expression: names that are no functions, labels, texts or durations."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)|\boffset \w+", " ", expression)
    return {name for name in re.findall(r"[a-zA-Z_]\w*", bare) if not re.fullmatch(FUNCTIONS, name)}


def test_alerts_and_panels_ask_for_metrics_that_exist(exported: set[str]) -> None:
    asked = [alert["expr"] for alert in alerts()] + [t["expr"] for panel in panels() for t in panel["targets"]]
    assert {name: one for one in asked for name in metrics_of(one) - exported} == {}
    assert metrics_of('sum by (code) (rate(bintally_nothing_total{a="b"}[5m] offset 1d)) > 1') - exported == {
        "bintally_nothing_total"
    }


def test_labels_of_our_metrics_exist() -> None:
    text = (MONITORING / "alerts.yaml").read_text()
    routes = set(re.findall(r'route="([^"]+)"', text))
    assert routes == {"/v1/count"}
    (counted,) = re.findall(r'bintally_refused_total\{code=~"([^"]+)"', text)
    assert set(counted.split("|")) <= STATUS_OF.keys()


def test_every_alert_has_its_place_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    assert [name for name in names if f"**{name}**" not in runbook] == []
    assert set(re.findall(r"^\| \*\*(\w+)\*\*", runbook, flags=re.MULTILINE)) == set(names)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "warn")
        assert alert["annotations"]["summary"]


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= dashboard.keys()
    (source,) = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    places = [tuple(panel["gridPos"].values()) for panel in panels()]
    assert len({panel["id"] for panel in panels()}) == len(set(places)) == len(panels())
    for panel in panels():
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_prometheus_reads_the_alerts_and_asks_the_loopback() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert [(MONITORING / name).exists() for name in config["rule_files"]] == [True]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert config["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]
    assert jobs["bintally"]["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert set(re.findall(r'job="(\w+)"', (MONITORING / "alerts.yaml").read_text())) <= jobs.keys()
