# SPDX-License-Identifier: Apache-2.0
"""Spans as a collector receives them, over real gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from support.collector import Collector, running_collector

from pvecri.config.settings import ConfigError, TracingConfig, parse
from pvecri.errors import NotFound
from pvecri.observability import correlation
from pvecri.observability.correlation import operation, span
from pvecri.observability.tracing import REPORT_INTERVAL, Seldom, Tracing
from pvecri.supervision import Supervisor

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
CALL = "runtime.v1.RuntimeService/RunPodSandbox"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@asynccontextmanager
async def recording(collector: Collector, rate: int = 0) -> AsyncIterator[None]:
    """Spans are recorded in the body; afterwards the collector has them."""
    tracing = Tracing(TracingConfig(endpoint=collector.address, sampling_rate_per_million=rate))
    correlation.record(tracing)
    try:
        yield
    finally:
        correlation.record(None)
        await tracing.close()


async def test_parts_of_a_call_are_below_it_and_it_is_below_its_caller(collector: Collector) -> None:
    async def attach() -> None:
        with span("CNI ADD bridge", {"pvecri.network": "pods"}):
            await asyncio.sleep(0)

    async with recording(collector):
        with operation("RunPodSandbox", traceparent=SAMPLED, span_name=CALL) as call:
            with span("Proxmox POST /nodes/{node}/lxc", remote=True):
                correlation.annotate(pod_id="p1", vmid="900000")
            await asyncio.create_task(attach())
    assert call.id == TRACE
    request, plugin, root = collector.spans()
    assert (root.name, root.trace, root.parent) == (CALL, TRACE, CALLER)
    assert root.attributes == {"pod_id": "p1", "vmid": "900000"}
    assert root.service == "pvecri"
    assert (request.name, request.trace, request.parent) == ("Proxmox POST /nodes/{node}/lxc", TRACE, root.id)
    assert (plugin.name, plugin.parent, plugin.attributes) == (
        "CNI ADD bridge",
        root.id,
        {"pvecri.network": "pods"},
    )
    assert not any(each.failed for each in (root, request, plugin))


async def test_failed_part_has_its_error(collector: Collector) -> None:
    async with recording(collector):
        with pytest.raises(NotFound), operation("StopContainer", traceparent=SAMPLED, span_name=CALL):
            raise NotFound("container 'c1' does not exist")
        with pytest.raises(asyncio.CancelledError), operation("Watch", traceparent=SAMPLED, span_name=CALL):
            raise asyncio.CancelledError
    failed, cancelled = collector.spans()
    assert (failed.failed, failed.message) == (True, "container 'c1' does not exist")
    assert failed.attributes == {"error.type": "NOT_FOUND"}
    assert (cancelled.failed, cancelled.attributes) == (False, {"error.type": "CANCELLED"})


async def test_nothing_is_recorded_inside_a_leaf(collector: Collector) -> None:
    async with recording(collector):
        with operation("RunPodSandbox", traceparent=SAMPLED, span_name=CALL):
            with span("Proxmox task vzcreate", leaf=True), span("Proxmox GET /nodes/{node}/tasks/{upid}/status"):
                pass
            with span("after it"):
                pass
    assert [each.name for each in collector.spans()] == ["Proxmox task vzcreate", "after it", CALL]


@pytest.mark.parametrize(
    ("traceparent", "rate", "recorded"),
    [(SAMPLED, 0, True), (NOT_SAMPLED, 1_000_000, False), ("", 1_000_000, True), ("", 0, False)],
)
async def test_the_callers_decision_counts_before_the_rate(
    collector: Collector, traceparent: str, rate: int, recorded: bool
) -> None:
    async with recording(collector, rate):
        with operation("RunPodSandbox", traceparent=traceparent, span_name=CALL) as call, span("part"):
            pass
    assert len(call.id) == 32  # for the log, whether it is recorded or not
    assert [each.trace for each in collector.spans()] == [call.id] * 2 * recorded


async def test_background_work_is_no_part_of_the_call_that_began_it(collector: Collector) -> None:
    async def step() -> None:
        with span("Proxmox GET /version"):
            await asyncio.sleep(0)

    async with recording(collector, rate=1_000_000):
        supervisor = Supervisor()
        with operation("RunPodSandbox", traceparent=SAMPLED, span_name=CALL):
            task = supervisor.once("CT tags", step)
        await task
    assert [each.name for each in collector.spans()] == [CALL]


async def test_collector_that_is_away_is_reported_and_no_error_of_a_call(caplog: pytest.LogCaptureFixture) -> None:
    with running_collector() as gone:
        pass
    async with recording(gone, rate=1_000_000):
        with operation("RunPodSandbox", span_name=CALL):
            pass
    assert any(gone.address in each.getMessage() for each in caplog.records)


def test_failing_exports_are_reported_seldom() -> None:
    now = 0.0
    seldom = Seldom(lambda: now)

    def passes(message: str) -> bool:
        return seldom.filter(logging.LogRecord("exporter", logging.ERROR, "", 0, message, ("1.23",), None))

    assert [passes("retrying in %s"), passes("retrying in %s"), passes("failed")] == [True, False, True]
    now = REPORT_INTERVAL
    assert passes("retrying in %s")


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:4317", "https://otel.example.org:4317", "[::1]:4317", "collector:1"]
)
def test_endpoint_is_a_host_and_a_port(endpoint: str) -> None:
    assert parse(f'tracing.endpoint = "{endpoint}"').tracing.endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint", ["4317", "host", "http://host:4317", "host:4317/v1/traces", "host:x", "a@host:1"]
)
def test_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"^p: tracing\.endpoint: "):
        parse(f'tracing.endpoint = "{endpoint}"', "p")
