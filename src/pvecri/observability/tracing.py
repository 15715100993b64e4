# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry traces: records the spans of correlation.py, and sends them to a collector by OTLP over gRPC.

Imported only if tracing.endpoint is set: the library takes four megabytes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import pvecri
from pvecri.concurrency import in_own_thread
from pvecri.config.settings import TracingConfig
from pvecri.observability import metrics
from pvecri.observability.correlation import Attributes

EXPORT_TIMEOUT: Final = 5.0
"""Seconds for one export, repeated attempts included."""

CLOSE_TIMEOUT: Final = 3.0
"""Seconds for the spans that are left when the daemon ends."""

REPORT_INTERVAL: Final = 600.0
"""Seconds between two log messages about the same failure of exports."""

_EXPORTERS_LOGGER: Final = "opentelemetry.exporter.otlp.proto.grpc.exporter"


class Tracing:
    """Records spans from its creation until `close`; the Recorder of correlation.py."""

    def __init__(self, config: TracingConfig) -> None:
        """Connects in the background: a collector that is away loses spans, and delays nothing."""
        described = {
            "service.name": "pvecri",
            "service.version": pvecri.__version__,
            "host.name": socket.gethostname(),
        }
        # As a kubelet: the caller's decision counts, and the rate is for calls without one.
        sampler = ParentBased(TraceIdRatioBased(config.sampling_rate_per_million / 1_000_000))
        self._provider = TracerProvider(sampler, Resource.create(described), shutdown_on_exit=False)
        self._seldom = Seldom()
        logging.getLogger(_EXPORTERS_LOGGER).addFilter(self._seldom)
        insecure = not config.endpoint.startswith("https://")
        exporter = OTLPSpanExporter(endpoint=config.endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pvecri", pvecri.__version__)
        # Not OpenTelemetry's own context: that cannot be left by a generator which another task closes.
        self._current: ContextVar[Span] = ContextVar("span", default=INVALID_SPAN)

    async def close(self) -> None:
        """Send what is left, within CLOSE_TIMEOUT."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await in_own_thread(self._provider.shutdown)
        logging.getLogger(_EXPORTERS_LOGGER).removeFilter(self._seldom)

    @contextmanager
    def operation(self, name: str, traceparent: str, attributes: Attributes) -> Iterator[str]:
        """See Recorder."""
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
        span = self._tracer.start_span(name, parent, SpanKind.SERVER)
        with self._recorded(span, leaf=False):
            try:
                yield format_trace_id(span.get_span_context().trace_id)
            finally:
                span.set_attributes(attributes)

    @contextmanager
    def no_operation(self) -> Iterator[None]:
        """See Recorder."""
        before = self._current.get()
        self._current.set(INVALID_SPAN)
        try:
            yield
        finally:
            self._current.set(before)

    @contextmanager
    def span(self, name: str, attributes: Attributes, *, remote: bool, leaf: bool) -> Iterator[None]:
        """See Recorder."""
        parent = self._current.get()
        if not parent.is_recording():
            yield
            return
        kind = SpanKind.CLIENT if remote else SpanKind.INTERNAL
        span = self._tracer.start_span(name, set_span_in_context(parent, Context()), kind, attributes)
        with self._recorded(span, leaf):
            yield

    @contextmanager
    def _recorded(self, span: Span, leaf: bool) -> Iterator[None]:
        """Make a span the current one, and end it with the body's outcome."""
        before = self._current.get()
        self._current.set(INVALID_SPAN if leaf else span)
        try:
            yield
        except BaseException as error:
            code = metrics.code_of(error)
            span.set_attribute("error.type", code)
            if code != "CANCELLED":  # the caller's wish
                span.set_status(StatusCode.ERROR, str(error) or type(error).__name__)
            raise
        finally:
            self._current.set(before)
            span.end()


class Seldom(logging.Filter):
    """Lets the same message pass once in REPORT_INTERVAL: an exporter reports each failed attempt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message passes."""
        last = self._passed.get(str(record.msg))
        if last is not None and self._clock() - last < REPORT_INTERVAL:
            return False
        self._passed[str(record.msg)] = self._clock()
        return True
