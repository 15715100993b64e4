# SPDX-License-Identifier: Apache-2.0
"""HTTP to servers that answer by the byte: kept connections, odd endings, nothing sent twice."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakepve.certs import make_cert

from pvecri.config.settings import ProxmoxConfig
from pvecri.proxmox.body import FileBody
from pvecri.proxmox.http import HttpClient, NoResponse, NotConnected
from pvecri.proxmox.tls import Trust, WrongFingerprint

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of `answers`, the last one for ever; b"" closes the connection."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.heads: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if not answer:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@asynccontextmanager
async def client_of(
    handler: Handler, *, connections: int = 8, keepalive: float = 60.0, certificate: tuple[str, str] | None = None
) -> AsyncIterator[HttpClient]:
    """A client of a server on loopback, over TLS with a certificate (file, key), which it trusts."""
    context = None
    config = ProxmoxConfig()
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
        der = ssl.PEM_cert_to_DER_cert(Path(certificate[0]).read_text())
        config = ProxmoxConfig(fingerprint=hashlib.sha256(der).hexdigest())
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
    url = f"http{'s' if context else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = HttpClient(url, Trust(config), connections=connections, keepalive=keepalive)
    try:
        yield client
    finally:
        client.close()
        server.close()  # without wait_closed: since Python 3.12 that waits for handlers, and some here never end


async def get(client: HttpClient) -> bytes:
    return (await client.request("GET", "/", {}, None)).body


async def test_requests_one_after_the_other_share_a_connection() -> None:
    server = Server(OK)
    async with client_of(server.serve) as client:
        assert [await get(client) for _ in range(5)] == [b"ok"] * 5
    assert server.connections == 1


async def test_requests_at_once_have_a_connection_each_up_to_the_limit() -> None:
    server = Server(OK)
    async with client_of(server.serve, connections=3) as client:
        assert await asyncio.gather(*(get(client) for _ in range(20))) == [b"ok"] * 20
    assert server.connections == 3


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()
        closed.set()
        writer.close()

    async with client_of(serve, keepalive=0.01) as client:
        await get(client)
        await closed.wait()


@pytest.mark.parametrize("unasked", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_a_connection_that_the_server_ended_while_idle_is_not_used_again(unasked: bytes) -> None:
    server = Server(OK)
    async with client_of(server.serve) as client:
        await get(client)
        server.writers[0].write(unasked)
        server.writers[0].close()
        await server.writers[0].wait_closed()
        await asyncio.sleep(0)
        assert await get(client) == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_server_will_close_is_not_used_again(answer: bytes) -> None:
    server = Server(answer)
    async with client_of(server.serve) as client:
        assert [await get(client), await get(client)] == [b"ok", b"ok"]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n", b"ok!"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
async def test_shapes_of_a_response(answer: bytes, body: bytes) -> None:
    server = Server(answer)
    async with client_of(server.serve) as client:
        assert [await get(client), await get(client)] == [body, body]
    assert server.connections == 1


async def test_a_response_without_a_length_ends_with_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nok")
        writer.close()

    async with client_of(serve) as client:
        assert await get(client) == b"ok"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed without a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed without a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "invalid HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "invalid HTTP"),
    ],
)
async def test_a_response_that_is_none_ends_the_request(answer: bytes, why: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with client_of(serve) as client:
        with pytest.raises(NoResponse, match=why):
            await get(client)


async def test_a_refused_upload_is_read_before_all_of_it_was_sent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read(1)  # and no more: the rest of the body stays unread
        await asyncio.Event().wait()

    async with client_of(serve) as client:
        response = await client.request("POST", "/upload", {}, b"x" * (64 << 20))
    assert (response.status, response.reason) == (413, "Too large")


async def test_a_file_is_sent_as_fast_as_the_server_reads(tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = bytes(range(256)) * (32 << 12)
    file.write_bytes(content)
    received = hashlib.sha256()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % (len(content) + 8) in head
        await asyncio.sleep(0.1)
        received.update(await reader.readexactly(len(content) + 8))
        writer.write(OK)

    async with client_of(serve) as client:
        response = await client.request("POST", "/", {}, FileBody(b"head", file, len(content), b"tail"))

    assert response.body == b"ok"
    assert received.digest() == hashlib.sha256(b"head" + content + b"tail").digest()


async def test_a_refused_file_is_not_sent_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    refusal = b"HTTP/1.1 403 no\r\nContent-Length: 0\r\n\r\n"
    async with client_of(Server(refusal).serve) as client:
        response = await client.request("POST", "/", {}, FileBody(b"", file, 1 << 40, b""))
    assert response.status == 403


async def test_an_empty_body_has_a_length_and_no_body_has_none() -> None:
    server = Server(OK)
    async with client_of(server.serve) as client:
        await client.request("POST", "/a", {"Content-Type": "text/plain"}, b"")
        await client.request("DELETE", "/a?force=1", {}, None)
    post, delete = server.heads
    assert b"Content-Length: 0\r\n" in post
    assert delete.startswith(b"DELETE /a?force=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Content-Length" not in delete


async def test_a_cancelled_request_closes_its_connection() -> None:
    received, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.set()
        await reader.read()
        closed.set()
        writer.close()

    async with client_of(serve) as client:
        request = asyncio.ensure_future(get(client))
        await received.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await closed.wait()


async def test_close_ends_requests_under_way() -> None:
    received = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.set()
        await reader.read()
        writer.close()

    async with client_of(serve) as client:
        request = asyncio.ensure_future(get(client))
        await received.wait()
        client.close()
        with pytest.raises(NoResponse, match="closed by the client"):
            await request


async def test_close_ends_a_request_that_is_connecting() -> None:
    server = Server(OK)
    async with client_of(server.serve) as client:
        request = asyncio.ensure_future(get(client))
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(NotConnected, match="closed by the client"):
            await request
    assert server.heads == []


async def test_a_pinned_certificate_is_enough(tmp_path: Path) -> None:
    server = Server(OK)
    async with client_of(server.serve, certificate=make_cert(str(tmp_path), "pve")[:2]) as client:
        assert [await get(client), await get(client)] == [b"ok", b"ok"]
    assert server.connections == 1


async def test_nothing_is_sent_to_a_server_with_another_certificate(tmp_path: Path) -> None:
    server = Server(OK)
    trust = Trust(ProxmoxConfig(fingerprint="00" * 32))
    async with client_of(server.serve, certificate=make_cert(str(tmp_path), "pve")[:2]) as client:
        client._check = trust
        with pytest.raises(NotConnected) as caught:
            await get(client)
    assert isinstance(caught.value.error, WrongFingerprint)
    assert server.heads == []
