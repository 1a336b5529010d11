"""The metrics for Prometheus: nothing without Ray, and the dashboard asks for exactly those that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from orpo_ray.telemetry import metrics

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARD = REPOSITORY / "deploy" / "grafana-dashboard.json"


def test_nothing_happens_without_ray() -> None:
    code = """
import sys
from pathlib import Path
sys.modules["ray"] = None  # an import of it now fails
from orpo_ray.telemetry import metrics
metrics.training_line(Path("runs/x"), {"step": 1, "loss": 1.0, "skipped": [1]})
metrics.sweep_changed("x", {"finished": 1}, "eval_loss", 1.0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trial_is_named_by_its_sweep() -> None:
    assert metrics.run_and_trial(Path("/runs/hh-orpo")) == ("hh-orpo", "")
    assert metrics.run_and_trial(Path("/runs/hh-sweep/trials/003")) == ("hh-sweep", "003")


def test_the_dashboard_can_be_imported_and_shows_every_metric() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in board["panels"] if panel["type"] != "row"
        for target in panel["targets"]
        for name in re.findall(r"\w*orpo_ray_\w+", target["expr"])
    }  # fmt: skip
    assert asked == metrics.exported()
    assert board["schemaVersion"] >= 36 and board["title"] and "__inputs" not in board
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert {"run", "trial"} < set(variables)
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert all('run=~"$run"' in target["expr"] for panel in panels for target in panel["targets"])
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places) and all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)


def test_the_documentation_lists_every_metric() -> None:
    told = set(re.findall(r"`(ray_orpo_ray_\w+)`", (REPOSITORY / "docs" / "observability.md").read_text()))
    assert told == metrics.exported()
