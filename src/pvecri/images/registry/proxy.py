# SPDX-License-Identifier: Apache-2.0
"""The client of `skopeo experimental-image-proxy`, a process that serves several requests.

The protocol is JSON over a SOCK_SEQPACKET socket, one request and one reply at a time; content comes through pipes
whose descriptors are passed with replies (skopeo's documentation, experimental-image-proxy). skopeo closes a pipe
only on FinishPipe, and answers that only after all has been read and verified: so pipes are read concurrently.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from pvecri.concurrency import finish
from pvecri.errors import CommandError, Unavailable
from pvecri.images.manifest import MAX_DOCUMENT, BadImage
from pvecri.linux.fds import readable
from pvecri.model import Value

MAX_REPLY: Final = 64 << 10
_MAX_STDERR: Final = 64 << 10


class _Reply(Value, frozen=True):
    success: bool
    value: object = None
    pipeid: int = 0
    error: str = ""


class Pipe(NamedTuple):
    """The pipe of a blob: the end to read, which the receiver closes, and its number for `finish`."""

    fd: int
    number: int


class ProxyGone(CommandError):
    """The process has ended."""


class ImageProxy:
    """A running process; `start` makes one. After any error but a CommandError it must be closed."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket, stderr: int) -> None:
        self._process = process
        self._channel = channel
        self._stderr = stderr
        self._turn = asyncio.Lock()  # skopeo answers in order, without numbers
        self._gone = False
        self.version: tuple[int, ...] = ()

    async def open(self, name: str) -> int:
        """Open an image by its name with the transport, such as `docker://…`; its number for the other calls.

        Raises CommandError with skopeo's message.
        """
        return int(str((await self._call("OpenImage", name)).value))

    async def close_image(self, image: int) -> None:
        await self._call("CloseImage", image)

    async def manifest(self, image: int) -> tuple[str, bytes]:
        """The manifest for this platform: its digest in the registry, and its bytes, converted to OCI."""
        reply, pipe = await self._piped("GetManifest", image)
        return str(reply.value), await self._document(pipe)

    async def config(self, image: int) -> bytes:
        """The image's config, converted to OCI."""
        _, pipe = await self._piped("GetFullConfig", image)
        return await self._document(pipe)

    async def blob(self, image: int, digest: str, size: int) -> Pipe:
        """Begin to fetch a blob of the image; after reading the pipe, `finish` must be called."""
        return (await self._piped("GetBlob", image, digest, size))[1]

    async def document(self, image: int, digest: str, size: int) -> bytes:
        """A small blob as a whole."""
        return await self._document(await self.blob(image, digest, size))

    async def finish(self, pipe: Pipe) -> None:
        """Wait until a pipe has been read to its end. CommandError if its content has another digest or size."""
        await self._call("FinishPipe", pipe.number)

    async def close(self) -> None:
        """End the process. Idempotent."""
        kill(self._process)
        self._channel.close()
        await finish(self._process.wait())
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    @property
    def usable(self) -> bool:
        """Whether it runs and no request is unanswered. One that was just killed may seem to run."""
        return not self._gone and self._process.returncode is None and not self._turn.locked()

    async def _document(self, pipe: Pipe) -> bytes:
        reading = asyncio.ensure_future(asyncio.to_thread(_read_all, pipe.fd))
        try:
            await self.finish(pipe)
        except CommandError:
            raise  # skopeo has closed the pipe
        except BaseException:
            kill(self._process)  # else the pipe is never closed
            raise
        finally:
            await asyncio.wait([reading])
        return reading.result()

    async def _piped(self, method: str, *arguments: object) -> tuple[_Reply, Pipe]:
        reply, fds = await self._exchange(method, *arguments)
        if len(fds) != 1:
            raise CommandError("skopeo", 0, f"its reply to {method} has {len(fds)} pipes")
        return reply, Pipe(fds[0], reply.pipeid)

    async def _call(self, method: str, *arguments: object) -> _Reply:
        reply, fds = await self._exchange(method, *arguments)
        for fd in fds:
            os.close(fd)
        return reply

    async def _exchange(self, method: str, *arguments: object) -> tuple[_Reply, Sequence[int]]:
        request = msgspec.json.encode({"method": method, "args": arguments})
        async with self._turn:
            try:
                self._channel.send(request)
                await readable(self._channel.fileno())
                data, fds, _, _ = socket.recv_fds(self._channel, MAX_REPLY, 2)
            except OSError:
                data = b""  # as at EOF: the process has ended
        if not data:
            self._gone = True
            kill(self._process)  # it may have closed only its socket
            stderr = os.pread(self._stderr, _MAX_STDERR, 0).decode(errors="replace")
            raise ProxyGone("skopeo", await self._process.wait(), stderr)
        reply = msgspec.json.decode(data, type=_Reply)
        if not reply.success:
            raise CommandError("skopeo", 1, reply.error)
        return reply, fds


def kill(process: asyncio.subprocess.Process) -> None:
    """Send SIGKILL. Idempotent."""
    if process.returncode is None:
        # Not process.kill(): subprocess polls first, and may reap the child before asyncio's watcher does.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def start(command: Sequence[str]) -> ImageProxy:
    """Run `command`, skopeo with its subcommand and options.

    Raises Unavailable if it is not installed, CommandError if it is too old to have the subcommand.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stderr = os.memfd_create("skopeo")  # a pipe would have to be read all the time
    ours.setblocking(False)  # send(2) must not block the event loop
    try:
        with theirs:
            # skopeo expects its socket as descriptor 0, unless --sockfd names another.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=theirs.fileno(), stdout=asyncio.subprocess.DEVNULL, stderr=stderr
            )
    except BaseException as error:
        ours.close()
        os.close(stderr)
        if isinstance(error, FileNotFoundError):
            raise Unavailable(f"{command[0]} is not installed; images.skopeo names the program") from error
        raise
    proxy = ImageProxy(process, ours, stderr)
    try:
        version = str((await proxy._call("Initialize")).value)
        proxy.version = tuple(int(part) for part in version.split(".") if part.isdecimal())
    except BaseException:
        await finish(proxy.close())
        raise
    return proxy


def _read_all(fd: int) -> bytes:
    """All of a pipe, which is closed on FinishPipe or if the process ends."""
    with os.fdopen(fd, "rb") as pipe:
        data = pipe.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise BadImage(f"a manifest or config is larger than {MAX_DOCUMENT} bytes")
    return data
