# SPDX-License-Identifier: Apache-2.0
"""The client of worker.py: starts the process, sends it jobs, reads its answers."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pvecri.concurrency import finish
from pvecri.images.manifest import BadImage
from pvecri.images.registry.proxy import kill
from pvecri.model import Value
from pvecri.supervision import report

_START: Final = "import sys; sys.path.append(sys.argv[1]); from pvecri.images.unpacking.worker import main; main()"

MAX_JOB: Final = 64 << 10
"""Bytes of a job: the worker reads no more of a message."""
MAX_ANSWER: Final = 64 << 20
"""Bytes of a line: `implicit` may have a path for each of millions of entries."""

Progress = Callable[[int, int], None]
"""Called with the bytes of a blob read so far, and the bytes that they were decompressed to."""


class Job(Value, frozen=True):
    """Extract a layer's blob into `directory`, which is empty.

    If `stacked`, the directory has the files of the layers below, and this one is applied to them. `layer` is the
    name in errors, `max_size` in bytes. With `file`, a relative path, the blob itself becomes that file.
    `links` are symlinks of the layers below, with their targets by path: members below them are extracted to where
    they lead.
    """

    layer: str
    directory: str
    max_size: int
    max_entries: int
    stacked: bool = False
    file: str = ""
    links: dict[str, str] = msgspec.field(default_factory=dict)


class Unpacked(Value, frozen=True):
    """An extracted layer: the digest of its uncompressed archive, or of its file; the disk usage of its files.

    `implicit` are directories, relative to the layer, that the archive left out (`.` is the layer itself);
    `high_ids` are the files' owners and groups above 65535, which most user namespaces do not map.
    """

    diff_id: str
    bytes: int
    inodes: int
    implicit: tuple[str, ...] = ()
    high_ids: tuple[int, ...] = ()


class _Answer(Value, frozen=True):
    """A report of progress, or with `result` or `error` the last line about a job."""

    job: int
    fetched: int = 0
    unpacked: int = 0
    result: Unpacked | None = None
    error: str = ""


@dataclass(frozen=True)
class _Pending:
    answer: asyncio.Future[_Answer]
    progress: Progress


class Unpacker:
    """A running worker; `start` makes one. Jobs run concurrently."""

    def __init__(self, process: asyncio.subprocess.Process, jobs: socket.socket) -> None:
        self._process = process
        self._jobs = jobs
        self._pending: dict[int, _Pending] = {}
        self._last = 0
        self._reader = asyncio.ensure_future(self._read())

    @property
    def usable(self) -> bool:
        return not self._reader.done()

    async def run(self, job: Job, blob: int, progress: Progress = lambda _fetched, _unpacked: None) -> Unpacked:
        """Extract from the descriptor `blob`, a file or a pipe, and close it.

        Raises BadImage with the reason if it cannot be extracted. No process uses the directory after the return,
        also if the caller was cancelled.
        """
        if not self.usable:  # its socket may take jobs still, which nobody answers
            os.close(blob)
            raise BadImage(f"layer {job.layer} cannot be unpacked: its worker has ended")
        self._last += 1
        number = self._last
        pending = _Pending(asyncio.get_running_loop().create_future(), progress)
        self._pending[number] = pending
        try:
            # Named, for a field with its default value is omitted.
            defaults = {"stacked": False, "file": "", "links": {}}
            message = msgspec.json.encode({"job": number, **defaults, **msgspec.to_builtins(job)})
            if len(message) > MAX_JOB:
                raise BadImage(f"layer {job.layer} has too many directories that are symlinks in lower layers")
            socket.send_fds(self._jobs, [message], [blob])
        except OSError as error:
            self._pending.pop(number)
            raise BadImage(
                f"layer {job.layer} cannot be unpacked: its worker has ended: {error.strerror}"
            ) from error
        except BadImage:
            self._pending.pop(number)
            raise
        finally:
            os.close(blob)
        answer = await self._answered(number, pending)
        if answer.result is None:
            raise BadImage(f"layer {job.layer} cannot be unpacked: {answer.error}")
        return answer.result

    async def close(self) -> None:
        """Kill the worker and all its processes. Idempotent."""
        kill(self._process)
        self._jobs.close()
        # Its children die with it (PR_SET_PDEATHSIG); all have ended once its stdout is closed.
        await finish(asyncio.wait([self._reader]))
        await finish(self._process.wait())

    async def _answered(self, number: int, pending: _Pending) -> _Answer:
        try:
            return await asyncio.shield(pending.answer)
        except asyncio.CancelledError:
            if self.usable:
                self._jobs.send(msgspec.json.encode(number))
            # The worker answers for a killed job once its process has ended: then the directory may be removed.
            await finish(asyncio.wait([pending.answer]))
            raise

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                answer = msgspec.json.decode(line, type=_Answer)
                if 0 < answer.job <= self._last and answer.job not in self._pending:
                    continue  # a process that is killed after its answer is answered for by the worker, too
                if answer.result or answer.error:
                    self._pending.pop(answer.job).answer.set_result(answer)
                else:
                    self._pending[answer.job].progress(answer.fetched, answer.unpacked)
        except Exception as error:  # layers are hostile: the process that reads them may write anything
            report(error, "unpacking", "an answer of the unpacking process cannot be read; it is killed")
            kill(self._process)
        for pending in self._pending.values():
            pending.answer.set_result(_Answer(job=0, error="its worker has ended"))
        self._pending.clear()


async def start() -> Unpacker:
    """Start a worker, without site packages and with PATH as its only variable."""
    # SOCK_SEQPACKET keeps each job in one message, with its descriptor.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            # -I ignores PYTHON* variables and the user's packages, -S site packages. PATH is for zstd(1).
            *(sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).parents[3])),
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_ANSWER,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
    return Unpacker(process, ours)


@asynccontextmanager
async def unpacker() -> AsyncIterator[Unpacker]:
    """A worker that is closed with the context."""
    worker = await start()
    try:
        yield worker
    finally:
        await worker.close()
