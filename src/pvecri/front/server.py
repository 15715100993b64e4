# SPDX-License-Identifier: Apache-2.0
"""Serves pvecri-runtime: one connection a command, on a unix socket for the node's root alone."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from functools import partial
from pathlib import Path

from pvecri.concurrency import beside
from pvecri.config.settings import ConfigError
from pvecri.errors import PermissionDenied, PvecriError, printable
from pvecri.front import options
from pvecri.front.commands import Commands
from pvecri.front.protocol import Call, Connection, Disconnected
from pvecri.linux import single_instance
from pvecri.linux.fds import peer_gone, readable
from pvecri.observability import correlation, metrics
from pvecri.pods.front.container import FrontContainers
from pvecri.pods.front.wanted import LaunchFailed
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

BACKLOG = 128


class RuntimeServer:
    """Serves between `start` and `close`."""

    def __init__(self, path: Path, containers: FrontContainers) -> None:
        """`path` is the socket, which is created with mode 0600."""
        self._path = path
        self._commands = Commands(containers)
        self._supervisor = Supervisor()
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Listen. ConfigError if another process listens on the socket."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not await single_instance.remove_stale_socket(self._path):
            raise ConfigError(f"oci.socket: another process listens on {self._path}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)
        try:
            listening.bind(str(self._path))
            # Before anybody can connect: bind(2) has applied the umask only.
            self._path.chmod(0o600)
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise ConfigError(f"oci.socket: {self._path}: {error.strerror}") from error
        self._socket = listening
        self._supervisor.repeat("OCI runtime server", self._accept, _at_once)
        log.info("serving pvecri-runtime on %s", self._path)

    async def close(self) -> None:
        """Stop listening, and end the calls under way: their clients say that the daemon ended."""
        await self._supervisor.close()
        if self._socket is not None:
            self._socket.close()
            self._path.unlink(missing_ok=True)

    async def _accept(self) -> None:
        assert self._socket is not None
        await readable(self._socket.fileno())
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):  # it has ended meanwhile
            return
        self._supervisor.once("OCI runtime call", partial(self._serve, client))

    async def _serve(self, client: socket.socket) -> None:
        with client:
            connection = Connection(client)
            try:
                call = await connection.call()
            except Disconnected:  # as who looks whether somebody listens
                return
            except PvecriError as error:
                await connection.fail(str(error))
                return
            try:
                await self._answer(connection, call)
            finally:
                if call.stdin >= 0:
                    os.close(call.stdin)

    async def _answer(self, connection: Connection, call: Call) -> None:
        name = "pvecri-runtime"
        try:
            # Not before the call is read: a client that is still sending would not see the answer.
            if _peer_uid(connection.sock) != 0:
                raise PermissionDenied("only root may use pvecri-runtime")
            line = options.parse(call.arguments)
            name = line.command
            correlation.rename(f"pvecri-runtime {name}")
            correlation.annotate(container_id=line.arguments[0] if line.arguments else "")
            with metrics.measured(metrics.FRONT_CALLS, metrics.FRONT_SECONDS, name):
                # A front that gives up kills its client: what the call has begun is undone then.
                async with (
                    beside(self._commands.run(line, call, connection)) as work,
                    beside(peer_gone(connection.sock.fileno(), half=False)) as gone,
                ):
                    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        log.info("%s: its caller has given up", name)
                        return
                    work.result()
        except Disconnected as error:
            log.info("%s: %s", name, error)
        except LaunchFailed as error:
            log.info("%s: %s", name, error)
            await connection.exit(error.code)
        except PvecriError as error:
            log.info("%s: %s: %s", name, error.status, error)
            await connection.fail(str(error))
        except Exception as error:
            await connection.fail(printable(f"{name}: {type(error).__name__}: {error}"))
            raise


async def _at_once() -> None:
    """No pause between two connections."""


def _peer_uid(client: socket.socket) -> int:
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
