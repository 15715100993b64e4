# SPDX-License-Identifier: Apache-2.0
"""A reverse proxy before a registry that answers some requests for blobs as a failing registry does."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Fault(NamedTuple):
    """What the next `times` requests for a blob get: a status, or with `cut` the first so many bytes of it.

    With `reset` the connection is then reset instead of closed. With `short` these bytes are a whole response, as
    one of a proxy that has cached a part of the blob.
    """

    status: int = 200
    cut: int | None = None
    reset: bool = False
    short: bool = False
    times: int = 1_000_000


class FaultyRegistry:
    """`address` goes before the repository's name, as that of the registry behind it."""

    def __init__(self, upstream: str) -> None:
        self.address = ""
        self.requests: Counter[str] = Counter()
        """How often each blob was asked for, by digest."""
        self.upstream = upstream
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()

    def fail(self, digest: str, fault: Fault) -> None:
        """Let requests for the blob fail from now on."""
        with self._lock:
            self._faults[digest] = fault

    def fault(self, digest: str) -> Fault:
        """Count a request for a blob; what becomes of it."""
        with self._lock:
            self.requests[digest] += 1
            fault = self._faults.get(digest, Fault())
            if fault.times <= 0:
                return Fault()
            self._faults[digest] = fault._replace(times=fault.times - 1)
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    registry: FaultyRegistry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path, _, name = self.path.rpartition("/")
        fault = self.server.registry.fault(name) if path.endswith("/blobs") else Fault()
        if fault.status != 200:
            self._reply(fault.status, [("Retry-After", "0")], b"")
            return
        connection = http.client.HTTPConnection(self.server.registry.upstream, timeout=30)
        connection.putrequest("GET", self.path, skip_host=True, skip_accept_encoding=True)
        for header in self.headers.items():  # skopeo sends several of the name Accept
            connection.putheader(*header)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
        connection.close()
        kept = [each for each in response.getheaders() if each[0].lower() not in {"content-length", "connection"}]
        self._reply(response.status, kept, body, fault)

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        cut = fault.cut if fault is not None else None
        if fault is not None and fault.short:
            body, cut = body[:cut], None
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # skopeo is ended if another blob fails
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
            if fault is not None and fault.reset:
                # A linger of 0 seconds: close(2) sends RST, see socket(7).
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to stderr."""


@contextmanager
def faulty_registry(upstream: str) -> Iterator[FaultyRegistry]:
    """A proxy on a free port of the loopback interface before the registry at `upstream`."""
    registry = FaultyRegistry(upstream)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.registry = registry
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
