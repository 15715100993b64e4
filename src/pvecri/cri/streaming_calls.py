# SPDX-License-Identifier: Apache-2.0
"""Exec, Attach and PortForward: each returns a URL of the streaming server for the client."""

from __future__ import annotations

from pvecri.cri.filters import given
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.errors import InvalidArgument
from pvecri.pods.manager import PodManager
from pvecri.pods.validation import check_arguments
from pvecri.streaming.requests import CommandRequest, ForwardRequest, Kind
from pvecri.streaming.server import StreamingServer

MAX_PORT = 65535


class StreamingCalls:
    """A part of RuntimeService. Container and pod are looked up in the call, and used when the client connects."""

    def __init__(self, pods: PodManager, server: StreamingServer) -> None:
        self._streams = pods.streams
        self._server = server

    async def exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        """Exec."""
        container_id = given("container_id", request.container_id)
        if not request.cmd:
            raise InvalidArgument("cmd", "must not be empty")
        check_arguments("cmd", request.cmd)
        _check_streams(request)
        session = self._streams.exec(container_id, list(request.cmd), tty=request.tty)
        wanted = CommandRequest(
            Kind.EXEC, request.stdin, request.stdout, request.stderr, tty=request.tty, run=session.run
        )
        return pb.ExecResponse(url=self._server.url(wanted))

    async def attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        """Attach."""
        container_id = given("container_id", request.container_id)
        _check_streams(request)
        session = self._streams.attach(container_id)
        wanted = CommandRequest(
            Kind.ATTACH, request.stdin, request.stdout, request.stderr, tty=request.tty, run=session.run
        )
        return pb.AttachResponse(url=self._server.url(wanted))

    async def port_forward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        """PortForward."""
        for index, port in enumerate(request.port):
            if not 0 < port <= MAX_PORT:
                raise InvalidArgument(f"port[{index}]", f"{port} is not a port")
        ports = self._streams.ports(given("pod_sandbox_id", request.pod_sandbox_id))
        return pb.PortForwardResponse(url=self._server.url(ForwardRequest(tuple(request.port), ports.connect)))


def _check_streams(request: pb.ExecRequest | pb.AttachRequest) -> None:
    """The rules that cri.proto states for the stream fields of both messages."""
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("stdin, stdout, stderr", "one of them must be true")
    if request.tty and request.stderr:
        raise InvalidArgument("stderr", "must be false with tty: a terminal has one output")
