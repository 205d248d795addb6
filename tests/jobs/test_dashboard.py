"""The Grafana dashboard asks for metrics that there are, each as its kind allows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from workers.metrics import METRICS, Kind

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
KNOWN = {metric.exported: metric for metric in METRICS}
OF_RAY = {"NodeAddress", "WorkerId"}
_METRIC = re.compile(r"\bray_spd_\w+")


def asked(panel: dict) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def problems(expr: str) -> list[str]:
    """What is wrong with a query."""
    found = [f"{name} is no metric" for name in _METRIC.findall(expr) if name not in KNOWN]
    for function, name in re.findall(r"(\w*)\(?\(?(ray_spd_\w+)\{", expr):
        counter = name in KNOWN and KNOWN[name].kind is Kind.COUNTER
        if counter != (function in ("rate", "increase")):
            found.append(f"{name}: {function or 'no function'}")
    names = [KNOWN[name] for name in _METRIC.findall(expr) if name in KNOWN]
    allowed = OF_RAY | {"dataset"} | {label for metric in names for label in metric.labels}
    labels = re.findall(r"by \((\w+)\)", expr) + re.findall(r"[{,](\w+)[!=]", expr)
    return found + [f"{label} is no label" for label in labels if label not in allowed]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_metrics_and_labels_that_there_are(panel):
    assert asked(panel) and all(_METRIC.search(expr) for expr in asked(panel))
    assert [problem for expr in asked(panel) for problem in problems(expr)] == []
    shown = {label for target in panel["targets"] for label in re.findall(r"{{(\w+)}}", target["legendFormat"])}
    kept = {label for expr in asked(panel) for label in re.findall(r"by \((\w+)\)", expr)}
    assert shown <= (kept or OF_RAY)
    assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"]


def test_every_metric_is_shown():
    assert {name for panel in PANELS for expr in asked(panel) for name in _METRIC.findall(expr)} == KNOWN.keys()


def test_every_state_that_a_panel_selects_is_one_that_is_recorded():
    selected = {pair for panel in PANELS for expr in asked(panel) for pair in re.findall(r'(\w+)!?="(\w+)"', expr)}
    for label, value in selected:
        assert any(label in metric.labels and re.search(rf"\b{value}\b", metric.help) for metric in METRICS), value


def test_panels_have_room_and_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ('sum(rate(ray_spd_pictures_total{dataset=~"$dataset"}[5m]))', "ray_spd_pictures_total is no metric"),
        ('sum(ray_spd_images_total{dataset=~"$dataset"})', "ray_spd_images_total: sum"),
        ('rate(ray_spd_shards{dataset=~"$dataset"}[5m])', "ray_spd_shards: rate"),
        ('sum by (stage) (rate(ray_spd_images_total{dataset=~"$dataset"}[5m]))', "stage is no label"),
    ],
)
def test_a_wrong_query_is_found(expr, wrong):
    assert wrong in problems(expr)


def test_the_docs_list_every_metric_as_it_is():
    docs = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for metric in METRICS:
        assert f"| `{metric.name}` | {''.join(metric.labels)} | {metric.help.rstrip('.')} |" in docs
