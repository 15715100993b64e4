# SPDX-License-Identifier: Apache-2.0
"""PortForward: connections to ports on a pod's loopback interface."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.linux import namespaces

_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


@dataclass(frozen=True)
class PodPorts:
    """The ports of a pod. `netns` is the path of its network namespace, None for the node's."""

    sandbox: str
    netns: Path | None
    running: Callable[[], bool]

    async def connect(self, port: int) -> socket.socket:
        """A non-blocking socket, connected to the port on 127.0.0.1, else on ::1.

        OSError if both fail, ConnectionResetError if the pod reset it at once, FailedPrecondition if the pod is
        not running any more.
        """
        failure: OSError | None = None
        # IPv4 first, as containerd does; if both fail the client gets its error, the one that is expected.
        for family, address in _LOOPBACK:
            try:
                self._check_running()
                return await self._connect(family, address, port)
            except ConnectionResetError:  # the connection was established: a refused one is ECONNREFUSED
                raise
            except OSError as error:
                failure = failure or error
        self._check_running()
        assert failure is not None
        reason = os.strerror(failure.errno) if failure.errno else failure
        raise OSError(failure.errno, f"connect to localhost:{port} inside the pod: {reason}")

    def _check_running(self) -> None:
        if not self.running() or (self.netns is not None and not self.netns.exists()):
            # client-go ends the session on these words: without them kubectl would go on listening.
            raise FailedPrecondition(f"sandbox {self.sandbox} is not running")

    async def _connect(self, family: socket.AddressFamily, address: str, port: int) -> socket.socket:
        if self.netns is None:
            connection = socket.socket(family, socket.SOCK_STREAM)
        else:
            connection = await asyncio.to_thread(namespaces.open_socket, self.netns, family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except BaseException:
            connection.close()
            raise
        return connection
