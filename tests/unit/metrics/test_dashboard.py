# SPDX-License-Identifier: Apache-2.0
"""The example's Grafana dashboard: its layout, and its queries as Prometheus reads them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from support import promtool
from support.figures import names

DASHBOARD = Path(__file__).resolve().parents[3] / "examples/grafana-dashboard.json"

COLUMNS = 24
"""Of Grafana's grid."""

VARIABLES = {"$job": "pvecri", "$instance": ".*", "$__rate_interval": "5m"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def with_values(query: str) -> str:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def covers(panel: dict[str, Any], other: dict[str, Any]) -> bool:
    one, two = panel["gridPos"], other["gridPos"]
    beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
    below = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
    return not (beside or below)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= COLUMNS for panel in every)
    assert [(one["title"], two["title"]) for one, two in combinations(every, 2) if covers(one, two)] == []


def test_every_panel_can_be_read_without_the_documentation() -> None:
    lacking = [
        panel["title"]
        for panel in panels()
        if not panel["description"] or "unit" not in panel["fieldConfig"]["defaults"]
    ]
    assert lacking == []


def test_every_query_is_of_the_chosen_data_source_and_nodes() -> None:
    sources = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert sources == {"${datasource}"}
    selectors = [selector for query in queries() for selector in re.findall(r"\{(.*?)\}", query)]
    assert [each for each in selectors if not each.startswith('job="$job",instance=~"$instance"')] == []


def test_every_metric_has_a_panel() -> None:
    text = " ".join(queries())
    # Their counters are shown, and their durations are in other panels by method, plugin or command.
    left_out = {"pvecri_oci_command_duration_seconds", "pvecri_streaming_sessions_total"}
    assert {name for name in names() if not re.search(rf"\b{name}(_bucket)?\b", text)} == left_out


@promtool.needed
def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": with_values(query)} for number, query in enumerate(queries())]
    document = {"groups": [{"name": "dashboard", "rules": rules}]}
    assert f"{len(rules)} rules found" in promtool.run_on(document, tmp_path, "check", "rules")
