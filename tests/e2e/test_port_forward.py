# SPDX-License-Identifier: Apache-2.0
"""PortForward as clients see it: over SPDY, over SPDY in a WebSocket, over WebSocket channels."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused
from support.streaming_client import SpdyClient, TunnelClient, WebSocketClient

from pvecri.cri.proto import cri_pb2 as pb


@pytest.fixture(params=["SPDY", "tunnel"])
def forwarder(request: pytest.FixtureRequest) -> Callable[[str], SpdyClient]:
    """Makes a client of PortForward."""
    if request.param == "SPDY":
        return lambda url: SpdyClient(url, ["portforward.k8s.io"])
    return lambda url: TunnelClient(url, "SPDY/3.1+portforward.k8s.io")


def forward_url(cri: CriClient, pod: str, *ports: int) -> str:
    """The URL of a PortForward."""
    return str(cri.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id=pod, port=ports)).url)


def open_pair(client: SpdyClient, port: int, number: int) -> tuple[int, int]:
    """The error and the data stream of a new connection to a port."""
    headers = {"port": str(port), "requestid": str(number)}
    error = client.open(streamtype="error", **headers)
    client.send(error, fin=True)
    return error, client.open(streamtype="data", **headers)


@pytest.fixture
def echo(cri: CriClient, pod: str) -> int:
    """The port of a server in the pod that sends back what it gets."""
    container = cri.run(pod, "nc", "-ll", "-p", "8000", "-e", "cat", name="echo")
    eventually(lambda: ":1F40 " in cri.output(container, "cat", "/proc/net/tcp", "/proc/net/tcp6"), "nc listens")
    return 8000


def test_data_is_forwarded_in_both_directions(
    cri: CriClient, pod: str, echo: int, forwarder: Callable[[str], SpdyClient]
) -> None:
    client = forwarder(forward_url(cri, pod))
    error, data = open_pair(client, echo, 0)
    client.send(data, b"hello", fin=True)
    client.wait(lambda: {error, data} <= client.ended)
    assert (bytes(client.received[data]), bytes(client.received[error])) == (b"hello", b"")
    client.close()


def test_concurrent_connections_share_one_port_forward(
    cri: CriClient, pod: str, echo: int, forwarder: Callable[[str], SpdyClient]
) -> None:
    client = forwarder(forward_url(cri, pod))
    pairs = [open_pair(client, echo, number) for number in range(30)]
    for number, (_, data) in enumerate(pairs):
        client.send(data, b"%d " % number * 1000)
    client.wait(lambda: all(len(client.received[data]) >= 2000 for _, data in pairs))
    for _, data in pairs:
        client.send(data, fin=True)
    client.wait(lambda: {stream for pair in pairs for stream in pair} <= client.ended)
    for number, (_, data) in enumerate(pairs):
        assert client.received[data] == b"%d " % number * 1000
    client.close()


def test_refused_connection_does_not_end_others(
    cri: CriClient, pod: str, echo: int, forwarder: Callable[[str], SpdyClient]
) -> None:
    client = forwarder(forward_url(cri, pod))
    _, good = open_pair(client, echo, 0)
    error, bad = open_pair(client, 1, 1)
    client.wait(lambda: {error, bad} <= client.ended)
    assert b"connect to localhost:1 inside the pod: Connection refused" in client.received[error]
    client.send(good, b"still there", fin=True)
    client.wait(lambda: good in client.ended)
    assert client.received[good] == b"still there"
    client.close()


def test_megabytes_are_forwarded_unchanged(
    cri: CriClient, pod: str, echo: int, forwarder: Callable[[str], SpdyClient]
) -> None:
    sent = os.urandom(10 << 20)
    client = forwarder(forward_url(cri, pod))
    _, data = open_pair(client, echo, 0)

    def send() -> None:
        for at in range(0, len(sent), 50_000):
            client.send(data, sent[at : at + 50_000])
        client.send(data, fin=True)

    sender = threading.Thread(target=send)
    sender.start()
    client.wait(lambda: data in client.ended)
    sender.join()
    assert hashlib.sha256(client.received[data]).digest() == hashlib.sha256(sent).digest()
    client.close()


def test_requested_ports_are_forwarded_over_channels(cri: CriClient, pod: str, echo: int) -> None:
    received: dict[int, bytes] = defaultdict(bytes)

    def take(message: bytes) -> None:
        received[message[0]] += message[1:]

    client = WebSocketClient(forward_url(cri, pod, echo, 1), ["v4.channel.k8s.io"], take)
    client.send(b"\0hello")
    client.wait(lambda: b"hello" in received[0] and b"refused" in received[3])
    assert received[0] == echo.to_bytes(2, "little") + b"hello"
    assert (received[1], received[2]) == (echo.to_bytes(2, "little"), b"\1\0")
    assert received[3].startswith(b"\1\0error forwarding port 1 to pod")
    client.close()


def test_ports_of_a_host_network_pod_are_the_nodes(cri: CriClient, forwarder: Callable[[str], SpdyClient]) -> None:
    node = pb.LinuxPodSandboxConfig(
        security_context=pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(network=pb.NODE))
    )
    pod = cri.run_pod(cri.pod_config(linux=node))
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = forwarder(forward_url(cri, pod))
        _, data = open_pair(client, server.getsockname()[1], 0)
        connection, _ = server.accept()
        connection.sendall(b"from the node")
        connection.close()
        client.wait(lambda: data in client.ended)
    assert client.received[data] == b"from the node"
    client.close()


@pytest.fixture
def node_pod(cri: CriClient) -> str:
    """A pod in the node's network, whose servers a test can be."""
    options = pb.NamespaceOption(network=pb.NODE)
    return cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))


def reset(connection: socket.socket) -> None:
    """Close a connection with RST instead of FIN, as PostgreSQL does over TLS."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_reset_by_the_pod_resets_the_data_stream_and_is_no_error(
    cri: CriClient, node_pod: str, forwarder: Callable[[str], SpdyClient]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = forwarder(forward_url(cri, node_pod))
        for number in range(20):
            error, data = open_pair(client, port, number)
            client.send(data, b"hello")
            connection, _ = server.accept()
            assert connection.recv(5) == b"hello"
            reset(connection)
            client.wait(lambda: {error, data} <= client.ended)  # noqa: B023, called before the next round
            assert client.received[error] == b""
            assert client.resets & {error, data} == {data}
        _, data = open_pair(client, port, 100)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"the session goes on")
        client.wait(lambda: data in client.ended)
    assert client.received[data] == b"the session goes on"
    client.close()


def test_response_before_a_reset_is_delivered(
    cri: CriClient, node_pod: str, forwarder: Callable[[str], SpdyClient]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = forwarder(forward_url(cri, node_pod))
        error, data = open_pair(client, server.getsockname()[1], 0)
        connection, _ = server.accept()
        client.send(data, bytes(1 << 20))
        connection.recv(1)
        connection.sendall(b"413 Content Too Large")
        connection.close()  # with unread data: the kernel sends RST
        client.wait(lambda: {error, data} <= client.ended)
    assert (bytes(client.received[data]), bytes(client.received[error])) == (b"413 Content Too Large", b"")
    client.close()


def test_reset_by_the_pod_closes_a_connection_over_channels(cri: CriClient, node_pod: str) -> None:
    received: dict[int, bytes] = defaultdict(bytes)

    def take(message: bytes) -> None:
        received[message[0]] += message[1:]

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = WebSocketClient(forward_url(cri, node_pod, port), ["v4.channel.k8s.io"], take)
        connection, _ = server.accept()
        reset(connection)
        client.wait(lambda: False)
    assert received[1] == port.to_bytes(2, "little")  # the error channel has no message
    client.close()


def test_connection_to_a_pod_that_has_stopped_ends_the_clients_session(
    cri: CriClient, pod: str, forwarder: Callable[[str], SpdyClient]
) -> None:
    client = forwarder(forward_url(cri, pod))
    cri.stop_pod(pod)
    error, data = open_pair(client, 80, 0)
    client.wait(lambda: {error, data} <= client.ended)
    # client-go recognises the words and ends; with others kubectl goes on listening for a pod that is gone.
    assert f"sandbox {pod} is not running" in client.received[error].decode()
    client.close()


def test_ports_of_a_pod_that_is_not_ready_are_not_forwarded(cri: CriClient, pod: str) -> None:
    cri.stop_pod(pod)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "is not ready"):
        forward_url(cri, pod)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, r"port\[1\]: 70000 is not a port"):
        forward_url(cri, pod, 80, 70000)
