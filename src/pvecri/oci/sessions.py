# SPDX-License-Identifier: Apache-2.0
"""Exec and Attach: a client's streams, joined to a new command in a container or to its own command."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from pvecri.errors import FailedPrecondition
from pvecri.linux import keyrings
from pvecri.linux.fds import peer_gone
from pvecri.model import ContainerId
from pvecri.oci.exec_io import ExecIO, follow_size
from pvecri.oci.runtime import Bundle, OciRuntime, PodNamespaces
from pvecri.streaming.streams import CommandStreams, Source
from pvecri.supervision import Supervisor

_ATTACH_READ = 64 << 10
_ATTACH_WRITE = 8 << 10
"""Bytes: conmon takes a packet of this size whole; of a much larger one it drops the rest."""

_STDOUT, _STDERR = 2, 3
"""How conmon marks a packet, in its first byte."""


@dataclass(frozen=True)
class ExecSession:
    """A command to run in a running container."""

    runtime: OciRuntime
    pod: PodNamespaces
    container: ContainerId
    bundle: Bundle
    command: list[str]
    tty: bool

    async def run(self, streams: CommandStreams) -> int:
        """Run the command to its end; its exit code, 128 and the signal's number when one killed it.

        Cancelling kills the command and all of its session.
        """
        async with ExecIO() as copying:
            if self.tty:
                terminal = copying.terminal(streams)
                process = await self._start(["setsid", "--ctty"], terminal, terminal, terminal)
            else:
                stdin, stdout = copying.stdin(streams.stdin), copying.output(streams.stdout)
                process = await self._start([], stdin, stdout, copying.output(streams.stderr))
            try:
                copying.command_started()
                code = await process.wait()
                await copying.command_ended()
            finally:
                await self.runtime.kill_exec(self.pod, self.container, process)
        return code if code >= 0 else 128 - code

    async def _start(self, prefix: list[str], stdin: int, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        arguments = self.runtime.exec_arguments(self.pod, self.container, self.bundle, self.command, tty=self.tty)
        starting = asyncio.ensure_future(
            keyrings.start(*prefix, *arguments, stdin=stdin, stdout=stdout, stderr=stderr)
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await self.runtime.kill_exec(self.pod, self.container, await starting)
            raise


@dataclass(frozen=True)
class AttachSession:
    """The streams of a running container's own command, as its conmon gives them."""

    runtime: OciRuntime
    container: ContainerId
    bundle: Bundle
    stdin_once: bool
    former: FormerClients

    async def run(self, streams: CommandStreams) -> int:
        """Pass on what the container writes from now on, until it ends: 0. Cancelling leaves it running.

        FailedPrecondition when it has ended.
        """
        async with _conmon(self.bundle) as connection:
            tasks = []
            if streams.stdin is not None:
                tasks.append(asyncio.create_task(self._pass_stdin(streams.stdin, connection)))
            if streams.sizes is not None:
                tasks.append(asyncio.create_task(follow_size(streams.sizes, self._resize)))
            try:
                await _pass_output(connection, streams)
            finally:
                if self.stdin_once:
                    self.former.keep(connection, spoke=streams.stdin is not None)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return 0

    async def _pass_stdin(self, source: Source, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read():
            for start in range(0, len(data), _ATTACH_WRITE):
                await loop.sock_sendall(connection, data[start : start + _ATTACH_WRITE])
        if self.stdin_once:
            connection.shutdown(socket.SHUT_WR)  # conmon closes the container's stdin

    def _resize(self, columns: int, rows: int) -> None:
        self.runtime.resize(self.bundle, columns, rows)


class FormerClients:
    """Connections of clients that have left a container with stdin_once. They stay until it ends.

    Conmon closes such a container's stdin as soon as any connection ends, but the CRI wants it closed by the first
    client that had it open. So the connection of one that only listened stays open and takes no more output. That
    of one that spoke ends for writing alone, and its output is thrown away: conmon forgets to close stdin when it
    could not write to a connection before it sees its end.
    """

    def __init__(self) -> None:
        self._supervisor = Supervisor()

    def keep(self, connection: socket.socket, *, spoke: bool) -> None:
        """Keep a connection to a conmon, of which the caller closes its own descriptor."""
        kept = connection.dup()
        with suppress(OSError):  # the container has ended
            kept.shutdown(socket.SHUT_WR if spoke else socket.SHUT_RD)
        self._supervisor.once("former attach client", partial(_read_to_end if spoke else _close_at_end, kept))


async def _read_to_end(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(connection, _ATTACH_READ):
            pass


async def _close_at_end(connection: socket.socket) -> None:
    with connection:
        await peer_gone(connection.fileno(), half=False)


@asynccontextmanager
async def _conmon(bundle: Bundle) -> AsyncIterator[socket.socket]:
    """A connection to conmon's attach socket; FailedPrecondition when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        try:
            directory = os.open(bundle.directory, os.O_PATH | os.O_CLOEXEC)
            try:
                # A socket's address has 107 characters at most: the directory's path may be longer.
                await asyncio.get_running_loop().sock_connect(connection, f"/proc/self/fd/{directory}/attach")
            finally:
                os.close(directory)
        except OSError as error:
            raise FailedPrecondition(
                f"container {bundle.directory.name}: no conmon is listening: {error.strerror}"
            ) from error
        yield connection


async def _pass_output(connection: socket.socket, streams: CommandStreams) -> None:
    sinks = {_STDOUT: streams.stdout, _STDERR: streams.stderr}
    loop = asyncio.get_running_loop()
    while packet := await loop.sock_recv(connection, _ATTACH_READ):
        sink = sinks.get(packet[0])
        if sink is not None:
            try:
                await sink.write(packet[1:])
            except BrokenPipeError:
                sinks[packet[0]] = None
