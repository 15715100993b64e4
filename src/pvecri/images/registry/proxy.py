# SPDX-License-Identifier: Apache-2.0
"""`skopeo experimental-image-proxy`: a process that stays and answers, where others start and end.

It speaks JSON over a SOCK_SEQPACKET socket, one request and one reply at a time, and hands out content through
pipes that come along with replies (skopeo's documentation, experimental-image-proxy). A pipe's end is seen only
after FinishPipe, which in turn waits until all has been read and verified; so one side reads while the other asks.
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
from pvecri.model import Value

MAX_REPLY: Final = 64 << 10
_MAX_ERRORS: Final = 64 << 10


class _Reply(Value, frozen=True):
    success: bool
    value: object = None
    pipeid: int = 0
    error: str = ""


class Pipe(NamedTuple):
    """Content under way: the end to read, which the receiver closes, and its number for `finish`."""

    fd: int
    number: int


class ProxyGone(CommandError):
    """The process has ended, or ends: it answers nothing any more."""


class ImageProxy:
    """A running process; `start` makes one. After any error it is of no use any more but to be closed."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket, errors: int) -> None:
        self._process = process
        self._channel = channel
        self._errors = errors
        self._turn = asyncio.Lock()
        self._gone = False
        self.version: tuple[int, ...] = ()

    async def open(self, name: str) -> int:
        """Open an image by its name with the transport, such as `docker://…`; its number for the other calls.

        Raises CommandError with skopeo's words.
        """
        return int(str((await self._call("OpenImage", name)).value))

    async def close_image(self, image: int) -> None:
        """Forget an open image."""
        await self._call("CloseImage", image)

    async def manifest(self, image: int) -> tuple[str, bytes]:
        """The image's manifest for this platform: its digest as it came, and itself, which is always OCI's."""
        reply, pipe = await self._piped("GetManifest", image)
        return str(reply.value), await self._document(pipe)

    async def config(self, image: int) -> bytes:
        """The image's config, always OCI's, not byte by byte as it came."""
        _, pipe = await self._piped("GetFullConfig", image)
        return await self._document(pipe)

    async def blob(self, image: int, digest: str, size: int) -> Pipe:
        """Begin to fetch a blob of the image; what is read must be `finish`ed."""
        return (await self._piped("GetBlob", image, digest, size))[1]

    async def document(self, image: int, digest: str, size: int) -> bytes:
        """A small blob as a whole."""
        return await self._document(await self.blob(image, digest, size))

    async def finish(self, pipe: Pipe) -> None:
        """Wait until a pipe has been read to its end. CommandError when its content was not what was promised."""
        await self._call("FinishPipe", pipe.number)

    async def close(self) -> None:
        """End the process. Idempotent."""
        self._kill()
        self._channel.close()
        await finish(self._process.wait())
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    @property
    def usable(self) -> bool:
        """Whether it still runs and nobody waits for an answer. One that has just died may seem to run."""
        return not self._gone and self._process.returncode is None and not self._turn.locked()

    def _kill(self) -> None:
        kill(self._process)

    async def _document(self, pipe: Pipe) -> bytes:
        reading = asyncio.ensure_future(asyncio.to_thread(_read_all, pipe.fd))
        try:
            await self.finish(pipe)
        except BaseException:
            self._kill()  # or the pipe would never end
            raise
        finally:
            await asyncio.wait([reading])
        return reading.result()

    async def _piped(self, method: str, *arguments: object) -> tuple[_Reply, Pipe]:
        reply, fds = await self._exchange(method, *arguments)
        if len(fds) != 1:
            raise CommandError("skopeo", 0, f"{method} was answered with {len(fds)} pipes")
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
                await _readable(self._channel)
                data, fds, _, _ = socket.recv_fds(self._channel, MAX_REPLY, 2)
            except OSError:
                data = b""
        if not data:
            self._gone = True
            self._kill()  # it may have closed its input only
            raise ProxyGone("skopeo", await self._process.wait(), self._words())
        reply = msgspec.json.decode(data, type=_Reply)
        if not reply.success:
            raise CommandError("skopeo", 1, reply.error)
        return reply, fds

    def _words(self) -> str:
        """What it said to standard error."""
        return os.pread(self._errors, _MAX_ERRORS, 0).decode(errors="replace")


def kill(process: asyncio.subprocess.Process) -> None:
    """End a process. Its own `kill` may take the exit status away from the loop that waits for it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def start(command: Sequence[str]) -> ImageProxy:
    """Run `command`, skopeo with its subcommand and options; it serves on its standard input.

    Raises Unavailable when it is not installed, CommandError when it is too old to have the subcommand.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    errors = os.memfd_create("skopeo")
    ours.setblocking(False)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=theirs.fileno(), stdout=asyncio.subprocess.DEVNULL, stderr=errors
            )
    except BaseException as error:
        ours.close()
        os.close(errors)
        if isinstance(error, FileNotFoundError):
            raise Unavailable(f"{command[0]} is not installed; images.skopeo names the program") from error
        raise
    proxy = ImageProxy(process, ours, errors)
    try:
        version = str((await proxy._call("Initialize")).value)
        proxy.version = tuple(int(part) for part in version.split(".") if part.isdecimal())
    except BaseException:
        await finish(proxy.close())
        raise
    return proxy


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(channel, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(channel)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _read_all(fd: int) -> bytes:
    """Until the end, which comes with FinishPipe or with the death of the process."""
    with os.fdopen(fd, "rb") as pipe:
        data = pipe.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise BadImage(f"a manifest or config is larger than {MAX_DOCUMENT} bytes")
    return data
