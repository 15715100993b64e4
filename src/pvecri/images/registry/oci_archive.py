# SPDX-License-Identifier: Apache-2.0
"""The blobs of an OCI archive, a tar of an OCI image layout (image-spec 1.1, image-layout.md).

They are read in place: skopeo would extract the archive first, to a copy as large as the image (decision 0019).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import select
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from pvecri.errors import InternalError
from pvecri.images import manifest as manifests
from pvecri.images.manifest import MAX_DOCUMENT, BadImage
from pvecri.images.registry.proxy import Pipe

MAX_MEMBERS: Final = 10_000
_MAX_HEADER: Final = 64 << 10
_CHUNK: Final = 1 << 19
_POLL_MS: Final = 500
"""Milliseconds between two looks of a blocked thread whether the archive is being closed."""
_BLOBS: Final = "blobs/sha256/"


class _Extent(NamedTuple):
    """The position of a member's content in the archive, in bytes."""

    offset: int
    size: int


class OciArchive:
    """The archive of one image at `path`; its content is untrusted.

    Blobs are read by `parallel` threads of its own, for they block while their pipe is full.
    """

    def __init__(self, path: Path, parallel: int) -> None:
        self._path = path
        self._fd = -1
        self._members: dict[str, _Extent] = {}
        self._threads = ThreadPoolExecutor(parallel, "oci-archive")
        self._pumps: list[tuple[str, asyncio.Future[str]]] = []
        self._closing = threading.Event()

    def open(self) -> None:
        """Index the blobs. Blocks. BadImage if it is not an OCI archive, InternalError if it cannot be read."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InternalError(f"{self._path} cannot be read: {error.strerror}") from error
        self._members = _members(self._path, self._fd)

    async def close(self) -> None:
        """End the threads and close the file. Idempotent."""
        self._closing.set()
        await asyncio.gather(*(pump for _, pump in self._pumps), return_exceptions=True)
        self._pumps.clear()
        self._threads.shutdown(wait=False)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __contains__(self, digest: str) -> bool:
        return _member(digest) in self._members

    def config_digest(self) -> str:
        """The digest of the image's config. Blocks. Raises BadImage."""
        index = manifests.parse_layout(self._read("index.json"))
        manifest = manifests.verified(self._read(_member(index.digest)), index, "manifest")
        return manifests.parse_manifest(manifest).config.digest

    async def blob(self, digest: str) -> Pipe:
        """Begin to read a blob, as ImageProxy.blob. KeyError if the archive does not have it."""
        extent = self._members[_member(digest)]
        receive, send = os.pipe()
        loop = asyncio.get_running_loop()
        pump = loop.run_in_executor(self._threads, _pump, self._fd, extent, send, self._closing)
        self._pumps.append((digest, pump))
        return Pipe(receive, len(self._pumps) - 1)

    async def finish(self, pipe: Pipe) -> None:
        """Wait until a blob has been read or its reader has gone. Raises BadImage if it has another digest."""
        # Shielded: a thread cannot be cancelled; `close` waits for it.
        promised, pump = self._pumps[pipe.number]
        if (found := await asyncio.shield(pump)) != promised:
            raise BadImage(f"{self._path}: layer {promised} has the digest {found}: the archive is damaged")

    def _read(self, name: str) -> bytes:
        extent = self._members.get(name)
        if extent is None or extent.size > MAX_DOCUMENT:
            raise BadImage(f"{self._path} is not an OCI archive: it has no {name}, or too large a one")
        return os.pread(self._fd, extent.size, extent.offset)


class _Headers(io.FileIO):
    """The archive as tarfile reads it: a large read is a forged header, for content is read elsewhere."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _members(path: Path, fd: int) -> dict[str, _Extent]:
    found: dict[str, _Extent] = {}
    try:
        with _Headers(fd, closefd=False) as file, tarfile.TarFile(fileobj=file, mode="r") as archive:
            # tarfile takes a broken header for the end. Then the layers behind it come from the registry: no harm.
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise BadImage(f"{path} is not an OCI archive: it has more than {MAX_MEMBERS} members")
                if member.isreg():
                    # GNU tar writes `./blobs/…`.
                    found[os.path.normpath(member.name)] = _Extent(member.offset_data, member.size)
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, OSError) as error:
        raise BadImage(f"{path} is not an OCI archive: {error}") from error
    return found


def _member(digest: str) -> str:
    return _BLOBS + digest.removeprefix("sha256:")


def _pump(fd: int, extent: _Extent, send: int, closing: threading.Event) -> str:
    """Write a blob into a pipe until its reader closes it; the digest of the whole blob."""
    os.set_blocking(send, False)
    content, is_read = hashlib.sha256(), True
    position, end = extent.offset, extent.offset + extent.size
    try:
        while position < end and (chunk := os.pread(fd, min(_CHUNK, end - position), position)):
            content.update(chunk)  # also after the reader has gone: `finish` compares the digest
            position += len(chunk)
            is_read = is_read and _write(send, chunk, closing)
            if closing.is_set():
                break
    finally:
        os.close(send)
    return f"sha256:{content.hexdigest()}"


def _write(fd: int, data: bytes, closing: threading.Event) -> bool:
    """Write all of `data`; False if the reader has gone or the archive is being closed."""
    view, poller = memoryview(data), select.poll()
    poller.register(fd, select.POLLOUT)
    while view and not closing.is_set():
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError:
            return False
        except BlockingIOError:
            poller.poll(_POLL_MS)
    return True
