# SPDX-License-Identifier: Apache-2.0
"""The frames between pvecri-runtime and the daemon; runtime/pvecri-runtime.c, the other side, describes them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pvecri.errors import InternalError, InvalidArgument
from pvecri.linux.fds import readable

VERSION: Final = "1"
FRAME_MAX: Final = 16 << 20
"""Bytes of a frame: the kernel allows 6 MiB of arguments."""
_HEADER: Final = struct.Struct("<Ic")
_FDS_MAX: Final = 4


class Disconnected(InternalError):
    """The client has ended: its caller has killed it, or has ended itself."""


@dataclass(frozen=True)
class Call:
    """One command line. `stdin` is the client's standard input, -1 if that is closed; close it."""

    directory: Path
    arguments: tuple[str, ...]
    stdin: int = -1


class Connection:
    """A client, from its call to its end. One task may use it at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._received: list[int] = []
        """Descriptors that came with the frame that is being read."""
        sock.setblocking(False)

    async def call(self) -> Call:
        """What the client was started with; InvalidArgument if it is of another version."""
        try:
            fields = _strings(await self._receive(b"C"))
            version = fields[0] if len(fields) > 1 else "unknown"
            if version != VERSION:
                problem = f"pvecri-runtime speaks version {version} of the protocol, the daemon version {VERSION}"
                raise InvalidArgument("pvecri-runtime", f"{problem}: install both of the same pvecri")
            stdin = self._received.pop(0) if self._received else -1
            return Call(Path(fields[1]), tuple(fields[2:]), stdin)
        finally:
            self._close_received()

    async def launch(
        self,
        command: Sequence[str],
        *,
        exit_file: Path,
        pid_file: Path,
        pid_namespace: Path | None,
        started: Callable[[int], None],
    ) -> int:
        """Have the client run `command`, which starts a process and writes its PID to `pid_file`; its status.

        The client's caller becomes the parent of that process's monitor, whose PID on the node `started` gets
        before the command has ended, and which writes the process's exit code to `exit_file`. All but the client
        itself is in `pid_namespace`, if that is not None.
        """
        fields = [str(exit_file), str(pid_file), *command]
        fd = os.open(pid_namespace, os.O_RDONLY | os.O_CLOEXEC) if pid_namespace is not None else -1
        try:
            await self._send(b"l", _list(fields), fd)
        finally:
            if fd >= 0:
                os.close(fd)
        started(await self._number(b"m"))
        return await self._number(b"E")

    async def run(self, command: Sequence[str]) -> int:
        """Have the client run a program with its own streams; the program's status."""
        await self._send(b"e", _list(command))
        return await self._number(b"E")

    async def execute(self, command: Sequence[str]) -> None:
        """Have the client execute a program in its own place; the last frame."""
        await self._send(b"r", _list(command))

    async def write(self, text: bytes) -> None:
        """Have the client print to its standard output."""
        await self._send(b"o", text)

    async def exit(self, status: int) -> None:
        """Have the client exit; the last frame."""
        await self._send(b"x", bytes([status]))

    async def fail(self, message: str) -> None:
        """Have the client report an error and exit with status 1; the last frame."""
        await self._send(b"f", message.encode())

    async def _send(self, kind: bytes, content: bytes, fd: int = -1) -> None:
        try:
            # Twelve bytes always fit into the buffer of a socket whose peer has read all before.
            socket.send_fds(self.sock, [_HEADER.pack(len(content), kind)], [fd] if fd >= 0 else [])
            await asyncio.get_running_loop().sock_sendall(self.sock, content)
        except (ConnectionError, BlockingIOError) as error:
            raise Disconnected(f"pvecri-runtime has ended: {error}") from error

    async def _number(self, wanted: bytes) -> int:
        content = await self._receive(wanted)
        self._close_received()
        try:
            return int(content.removesuffix(b"\0"))
        except ValueError as error:
            raise InternalError(f"pvecri-runtime sent {content[:100]!r} for a number") from error

    async def _receive(self, wanted: bytes) -> bytes:
        header = await self._read(_HEADER.size)
        length, kind = _HEADER.unpack(header)
        if kind != wanted or length > FRAME_MAX:
            raise InternalError(f"pvecri-runtime sent a frame {kind!r} of {length} bytes, not {wanted!r}")
        return await self._read(length)

    async def _read(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, length - len(content), _FDS_MAX)
            except BlockingIOError:
                await readable(self.sock.fileno())
                continue
            except ConnectionError as error:
                raise Disconnected(f"pvecri-runtime has ended: {error}") from error
            self._received += fds
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds() ignores MSG_CMSG_CLOEXEC
            if not data:
                raise Disconnected("pvecri-runtime has ended")
            content += data
        return content

    def _close_received(self) -> None:
        while self._received:
            os.close(self._received.pop())


def _list(fields: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(field) + b"\0" for field in fields)


def _strings(content: bytes) -> list[str]:
    return [os.fsdecode(field) for field in content.split(b"\0")[:-1]]
