# SPDX-License-Identifier: Apache-2.0
"""A trace collector: the receiver of OTLP over gRPC, by the protocol's own service."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was received; ids in hex, `parent` empty for a root. `failed` is its status."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str]
    failed: bool
    message: str
    service: str


class Collector(services.TraceServiceServicer):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._spans: list[ReceivedSpan] = []
        self.address = ""

    def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:
        """The service's only call."""
        with self._lock:
            self._spans += _spans(request)
        return pb.ExportTraceServiceResponse()

    def spans(self, trace: str = "") -> list[ReceivedSpan]:
        """Those of a trace, or all, in the order of their ends."""
        with self._lock:
            return [each for each in self._spans if trace in ("", each.trace)]


def _spans(request: pb.ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource in request.resource_spans:
        service = next(
            each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
        )
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    attributes={each.key: each.value.string_value for each in span.attributes},
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    message=span.status.message,
                    service=service,
                )


@contextmanager
def running_collector(address: str = "127.0.0.1:0") -> Iterator[Collector]:
    """A collector that listens on `address`; port 0 chooses one."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    host, _, _ = address.rpartition(":")
    collector.address = f"{host}:{server.add_insecure_port(address)}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
