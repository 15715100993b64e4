# SPDX-License-Identifier: Apache-2.0
"""The metrics as a registry of prometheus_client, which writes Prometheus' formats. Imported only to show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pvecri.observability import metrics
from pvecri.observability.instruments import Counter, Gauge, Histogram, Instrument


class Instruments(Collector):
    """Collects instruments, with the prefix `pvecri_`."""

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self._instruments = instruments

    def collect(self) -> Iterator[Metric]:
        """The values now."""
        for each in self._instruments:
            yield _family(each)


def _family(instrument: Instrument) -> Metric:
    name, text, labels = f"pvecri_{instrument.name}", instrument.text, instrument.label_names
    if isinstance(instrument, Histogram):
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for values, series in instrument.series():
            bounds = [*map(floatToGoString, series.bounds), "+Inf"]
            totals = accumulate(series.counts)
            histogram.add_metric(values, list(zip(bounds, totals, strict=True)), series.sum)
        return histogram
    assert isinstance(instrument, Counter)
    kind = GaugeMetricFamily if isinstance(instrument, Gauge) else CounterMetricFamily
    family = kind(name, text, labels=labels)
    for values, each in instrument.series():
        family.add_metric(values, each.value)
    return family


def registry(instruments: Iterable[Instrument]) -> CollectorRegistry:
    """A registry that collects instruments."""
    made = CollectorRegistry()
    made.register(Instruments(instruments))
    return made


REGISTRY = registry(metrics.INSTRUMENTS)
"""All of the daemon's, with what prometheus_client knows of its process."""
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)
