# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests: a pod's, and one that stands for the node so that nothing outside is touched."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

from pvecri.linux import libc, namespaces

CLONE_NEWIPC = 0x0800_0000
CLONE_NEWNET = 0x4000_0000


@contextmanager
def network_namespace() -> Iterator[Path]:
    """The path of a new network namespace, held by a child process that does nothing else."""
    child = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        yield Path(f"/proc/{child.pid}/ns/net")
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


@contextmanager
def own_network_namespace() -> Iterator[Path]:
    """Moves this thread, and with it the children that it starts, to a new network namespace for the context.

    Bridges and packet filter rules that are made there are gone with it. Gives the path of the former namespace.
    """
    with _own_namespace("net", CLONE_NEWNET) as before:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield before


def own_ipc_namespace() -> AbstractContextManager[Path]:
    """As `own_network_namespace`, for System V shared memory, semaphores and queues: it starts empty."""
    return _own_namespace("ipc", CLONE_NEWIPC)


@contextmanager
def _own_namespace(kind: str, flag: int) -> Iterator[Path]:
    before = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("unshare", flag)
        try:
            yield Path(f"/proc/self/fd/{before}")
        finally:
            namespaces.setns(Path(f"/proc/self/fd/{before}"))
    finally:
        os.close(before)


@contextmanager
def forwarded(host: str, port: int, outside: Path) -> Iterator[None]:
    """TCP connections of this network namespace to host and port reach them in the namespace `outside`.

    `host` is an address, or a name that /etc/hosts has: it resolves here, too, where no DNS server is reached.
    """
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    literal = str(address[4][0])
    if not ip_address(literal).is_loopback:
        subprocess.run(["ip", "address", "add", literal, "dev", "lo"], check=True)
    listener = socket.create_server(address[4][:2], family=address[0])
    loop = asyncio.new_event_loop()

    def forward() -> None:
        namespaces.setns(outside)  # of this thread alone
        loop.run_until_complete(_serve(listener, literal, port))

    thread = Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join()
        loop.close()


async def _serve(listener: socket.socket, host: str, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_copy(reader, onward_writer), _copy(onward_reader, writer))

    server = await asyncio.start_server(connected, sock=listener)
    with suppress(asyncio.CancelledError):
        await server.serve_forever()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass everything on until the source ends; then the sink ends, too."""
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()
