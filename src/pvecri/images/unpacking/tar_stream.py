# SPDX-License-Identifier: Apache-2.0
"""A layer's blob as a stream of archive members: decompression, digest, limits. Standard library only.

Used by worker.py after it has confined itself; nothing here opens a file of the archive.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Final

CHUNK: Final = 1 << 19
MAX_HEADER: Final = 4 << 20
"""The largest name, link or pax header, in bytes."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class LayerError(Exception):
    """The archive is refused, with the reason."""


def decompressed(fd: int, on_read: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """The archive's bytes. The compression is detected by the magic number: media types are often wrong.

    `fd` is a file or a pipe; `on_read` is called with the number of bytes that have been read of it.
    """
    magic = _peek(fd)
    if magic.startswith(_GZIP_MAGIC):
        return _gunzip(counted(fd, on_read))
    if magic == _ZSTD_MAGIC:
        return _unzstd(fd, on_read)
    return counted(fd, on_read)


def _peek(fd: int) -> bytes:
    """The first bytes, without reading them: of a pipe by tee(2), which copies its content."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return os.pread(fd, 4, 0)
    _enlarge(fd)
    receive, send = os.pipe()
    try:
        # Not pvecri.linux.libc: this runs in the process that reads hostile input, which has the standard library
        # and this package alone (decision 0012).
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.tee(fd, send, ctypes.c_size_t(4), 0) < 0:
            raise OSError(ctypes.get_errno(), "tee(2) of the blob's pipe failed")
        os.close(send)
        send = -1
        return os.read(receive, 4)
    finally:
        os.close(receive)
        if send >= 0:
            os.close(send)


def _enlarge(fd: int) -> None:
    # Fewer switches between skopeo and this process: two thirds of the system time of a pull (decision 0017).
    with contextlib.suppress(OSError):  # not a pipe; EPERM above fs.pipe-max-size is only slower
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)


def _chunks(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, CHUNK):
        yield chunk


def counted(fd: int, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of `fd` as they are; `on_read` is called with the number of them so far."""
    _enlarge(fd)
    size = 0
    for chunk in _chunks(fd):
        size += len(chunk)
        on_read(size)
        yield chunk


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All gzip members: pigz and eStargz write more than one."""
    engine = zlib.decompressobj(wbits=31)  # 16 + 15: gzip's header and checksum, the largest window
    for chunk in chunks:
        data, more = chunk, True
        while data or more:
            if engine.eof:
                engine = zlib.decompressobj(wbits=31)
            output = engine.decompress(data, CHUNK)
            yield output
            data = engine.unused_data if engine.eof else engine.unconsumed_tail
            more = len(output) == CHUNK and not engine.eof  # zlib keeps output beyond a chunk
    if not engine.eof:
        raise LayerError("the gzip stream ends too early")


def _unzstd(fd: int, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """By zstd(1): the standard library has zstd since Python 3.14 only."""
    receive, send = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_DUP2, send, 1)]
    try:
        child = os.posix_spawnp("zstd", ["zstd", "-dcq"], os.environ, file_actions=actions)
    except FileNotFoundError as error:
        raise LayerError("it is compressed with zstd, and zstd(1) is not installed") from error
    os.close(send)
    # Opened before chroot(2): there is no /proc in the layer's directory.
    return _output(receive, child, os.open(f"/proc/{child}/io", os.O_RDONLY | os.O_CLOEXEC), on_read)


def _output(receive: int, child: int, account: int, on_read: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in _chunks(receive):
        with contextlib.suppress(OSError):  # zstd has ended
            on_read(int(os.pread(account, 64, 0).split()[1]))  # rchar, the bytes that it has read: proc(5)
        yield chunk
    os.close(account)
    os.close(receive)
    if os.waitpid(child, 0)[1] != 0:
        raise LayerError("zstd cannot decompress it")


class Archive:
    """The archive as a forward-only file that counts and digests all bytes.

    tarfile calls `tell` and `read`, for headers; content is read by `copy` and `skip_to`.
    """

    def __init__(self, chunks: Iterator[bytes], max_size: int) -> None:
        self._chunks = chunks
        self._max_size = max_size
        self._chunk = b""
        self._start = 0
        self._position = 0
        self._received = 0
        self._hash = hashlib.sha256()

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise LayerError(f"a header of {size} bytes")
        pieces = []
        for piece in self._take(size):
            pieces.append(bytes(piece))
        return b"".join(pieces)

    def copy(self, fd: int, size: int) -> None:
        """Write the next `size` bytes to a file."""
        for piece in self._take(size):
            written = 0
            while written < len(piece):
                written += os.write(fd, piece[written:])
            size -= len(piece)
        if size:
            raise LayerError("the archive ends in the middle of a file")

    def skip_to(self, position: int) -> None:
        if position < self._position:
            raise LayerError("a file's content is longer than its header says")
        for _ in self._take(position - self._position):
            pass

    def digest(self) -> str:
        """The digest of all bytes, also those after the end-of-archive mark."""
        while self._more():
            pass
        return f"sha256:{self._hash.hexdigest()}"

    def _take(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes in pieces, fewer at the end."""
        while size > 0:
            if self._start == len(self._chunk) and not self._more():
                return
            piece = memoryview(self._chunk)[self._start : self._start + size]
            self._start += len(piece)
            self._position += len(piece)
            size -= len(piece)
            yield piece

    def _more(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._hash.update(chunk)
                self._received += len(chunk)
                if self._received > self._max_size:
                    raise LayerError(f"it is larger than {self._max_size} bytes (images.max_layer_size)")
                self._chunk, self._start = chunk, 0
                return True
        return False


def members(archive: Archive) -> Iterator[tarfile.TarInfo]:
    """The archive's members; the content of each must be read before the next."""
    try:
        # Not by tarfile's iterator: it takes a broken header in the middle for the end, and so drops files.
        reader = tarfile.TarFile(fileobj=archive, mode="r", encoding="utf-8")  # type: ignore[arg-type]
        member = reader.firstmember  # type: ignore[attr-defined]
        while member is not None:
            yield member
            archive.skip_to(reader.offset)
            member = tarfile.TarInfo.fromtarfile(reader)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        if archive.tell() == 0:
            return  # an empty blob: some builders write such layers
        raise LayerError(f"not a tar archive: {error} at byte {archive.tell()}") from error
