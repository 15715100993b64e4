# SPDX-License-Identifier: Apache-2.0
"""The daemon's own metrics, for tests: of this process, or as a server shows them."""

from __future__ import annotations

import ssl
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from pvecri.observability.metrics_registry import REGISTRY

Series = tuple[str, tuple[tuple[str, str], ...]]


def value(name: str, **labels: str) -> float:
    """A series' value in this process; 0 before anything was counted. Tests look at the difference."""
    return REGISTRY.get_sample_value(f"pvecri_{name}", labels) or 0.0


def names() -> list[str]:
    """Every metric of the daemon's own, as Prometheus knows it."""
    families = [family for family in REGISTRY.collect() if family.name.startswith("pvecri_")]
    return [f"{each.name}_total" if each.type == "counter" else each.name for each in families]


class Scrape:
    """What one request to a server of metrics was answered."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        with urllib.request.urlopen(url, timeout=30, context=context) as response:
            self.text = response.read().decode()
            self.content_type = response.headers["Content-Type"]
        self._series: dict[Series, float] = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """A series of the daemon's own; 0 when it is not shown."""
        return self._series.get((f"pvecri_{name}", tuple(sorted(labels.items()))), 0.0)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of all series of a name."""
        return [dict(labels) for series, labels in self._series if series == f"pvecri_{name}"]
