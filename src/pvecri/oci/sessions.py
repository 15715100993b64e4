# SPDX-License-Identifier: Apache-2.0
"""Exec and Attach sessions: a client's streams, connected to a new command or to the container's conmon."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from pvecri.errors import FailedPrecondition
from pvecri.linux.fds import peer_gone
from pvecri.model import ContainerId
from pvecri.oci.exec_io import ExecIO, follow_size
from pvecri.oci.runtime import Bundle, OciRuntime, PodNamespaces
from pvecri.streaming.streams import CommandStreams, Source
from pvecri.supervision import Supervisor

_ATTACH_READ = 64 << 10
_ATTACH_WRITE = 8 << 10
"""Bytes per packet to conmon, which truncates packets that exceed its buffer."""

_STDOUT, _STDERR = 2, 3
"""The first byte of a packet from conmon: its stream."""


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
        """Run the command and return its exit code, 128 + N for signal N.

        Cancelling kills the command and its whole session.
        """
        async with ExecIO() as io:
            if self.tty:
                terminal = io.terminal(streams)
                # runc copies the window size of, and needs, a controlling terminal.
                process = await self._start(["setsid", "--ctty"], terminal, terminal, terminal)
            else:
                stdin, stdout = io.stdin(streams.stdin), io.output(streams.stdout)
                process = await self._start([], stdin, stdout, io.output(streams.stderr))
            try:
                io.close_child_ends()
                code = await process.wait()
                await io.drain()
            finally:
                await self.runtime.kill_exec(self.pod, self.container, process)
        return code if code >= 0 else 128 - code

    async def _start(self, prefix: list[str], stdin: int, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        arguments = self.runtime.exec_arguments(self.pod, self.container, self.bundle, self.command, tty=self.tty)
        return await self.runtime.start_exec(
            self.pod, self.container, [*prefix, *arguments], stdin, stdout, stderr
        )


@dataclass(frozen=True)
class AttachSession:
    """The streams of a running container's first process, by conmon's attach socket."""

    runtime: OciRuntime
    container: ContainerId
    bundle: Bundle
    stdin_once: bool
    detached: DetachedConnections

    async def run(self, streams: CommandStreams) -> int:
        """Copy streams until the container exits, and return 0. Cancelling detaches from it.

        FailedPrecondition if it has exited.
        """
        async with _conmon(self.bundle) as connection:
            tasks = []
            if streams.stdin is not None:
                tasks.append(asyncio.create_task(self._copy_stdin(streams.stdin, connection)))
            if streams.sizes is not None:
                tasks.append(asyncio.create_task(follow_size(streams.sizes, self._resize)))
            try:
                await _copy_output(connection, streams)
            finally:
                if self.stdin_once:
                    self.detached.keep(connection, had_stdin=streams.stdin is not None)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return 0

    async def _copy_stdin(self, source: Source, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read():
            for start in range(0, len(data), _ATTACH_WRITE):
                await loop.sock_sendall(connection, data[start : start + _ATTACH_WRITE])
        if self.stdin_once:
            connection.shutdown(socket.SHUT_WR)  # conmon then closes the container's stdin

    def _resize(self, columns: int, rows: int) -> None:
        self.runtime.resize(self.bundle, columns, rows)


class DetachedConnections:
    """Connections to conmon that stay open after their clients have detached from a container with stdin_once.

    conmon closes such a container's stdin when any connection closes, but the CRI wants that of the first client
    that had stdin attached. So the connection of a client without stdin stays open until the container exits. That
    of one with stdin is shut down for writing only, and its output is discarded: conmon does not close stdin if a
    write to the connection has failed before it sees EOF (decision 0033).
    """

    def __init__(self) -> None:
        self._supervisor = Supervisor()

    def keep(self, connection: socket.socket, *, had_stdin: bool) -> None:
        """Keep a duplicate of a connection, whose own descriptor the caller closes."""
        kept = connection.dup()
        with suppress(OSError):  # ENOTCONN: the container has exited
            kept.shutdown(socket.SHUT_WR if had_stdin else socket.SHUT_RD)
        self._supervisor.once(
            "detached attach client", partial(_discard_output if had_stdin else _close_at_exit, kept)
        )


async def _discard_output(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(connection, _ATTACH_READ):
            pass


async def _close_at_exit(connection: socket.socket) -> None:
    with connection:
        await peer_gone(connection.fileno(), half=False)


@asynccontextmanager
async def _conmon(bundle: Bundle) -> AsyncIterator[socket.socket]:
    """A connection to conmon's attach socket; FailedPrecondition if none is listening."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        try:
            directory = os.open(bundle.directory, os.O_PATH | os.O_CLOEXEC)
            try:
                # sun_path has 107 bytes, which the bundle's path may exceed.
                await asyncio.get_running_loop().sock_connect(connection, f"/proc/self/fd/{directory}/attach")
            finally:
                os.close(directory)
        except OSError as error:
            raise FailedPrecondition(
                f"container {bundle.directory.name}: no conmon is listening: {error.strerror}"
            ) from error
        yield connection


async def _copy_output(connection: socket.socket, streams: CommandStreams) -> None:
    sinks = {_STDOUT: streams.stdout, _STDERR: streams.stderr}
    loop = asyncio.get_running_loop()
    # SOCK_SEQPACKET: each receive is one packet, and the first byte is its stream.
    while packet := await loop.sock_recv(connection, _ATTACH_READ):
        sink = sinks.get(packet[0])
        if sink is not None:
            try:
                await sink.write(packet[1:])
            except BrokenPipeError:
                sinks[packet[0]] = None  # its reader has gone; the other stream goes on
