# SPDX-License-Identifier: Apache-2.0
"""The other end of unpack.py: starts the helper, gives it jobs, reads its answers."""

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


MAX_ANSWER: Final = 64 << 20

Progress = Callable[[int, int], None]
"""Is told how many bytes of a blob have come in so far, and how many came out."""


class Job(Value, frozen=True):
    """Unpack a layer's blob into `directory`, within the limits of the configuration.

    The directory is empty; `stacked`, it holds the layers below, to which this one is applied. `layer` names the
    layer in errors.
    """

    layer: str
    directory: str
    max_size: int
    max_entries: int
    stacked: bool = False


class Unpacked(Value, frozen=True):
    """What came out: the digest of the uncompressed archive, and what its files take.

    `implicit` are directories, relative to the layer, that the archive left out (`.` is the layer itself);
    `high_ids` are owners and groups of files that most user namespaces lack.
    """

    diff_id: str
    bytes: int
    inodes: int
    implicit: tuple[str, ...] = ()
    high_ids: tuple[int, ...] = ()


class _Answer(Value, frozen=True):
    job: int
    done: bool = False
    fetched: int = 0
    unpacked: int = 0
    diff_id: str = ""
    bytes: int = 0
    inodes: int = 0
    implicit: tuple[str, ...] = ()
    high_ids: tuple[int, ...] = ()
    error: str = ""

    def result(self) -> Unpacked:
        return Unpacked(
            diff_id=self.diff_id,
            bytes=self.bytes,
            inodes=self.inodes,
            implicit=self.implicit,
            high_ids=self.high_ids,
        )


@dataclass(frozen=True)
class _Pending:
    """A job that is not answered yet."""

    answer: asyncio.Future[_Answer]
    progress: Progress


class Unpacker:
    """A running helper; `start` makes one. Jobs run at the same time, as many as are given."""

    def __init__(self, process: asyncio.subprocess.Process, jobs: socket.socket) -> None:
        self._process = process
        self._jobs = jobs
        self._pending: dict[int, _Pending] = {}
        self._last = 0
        self._reader = asyncio.ensure_future(self._read())

    @property
    def usable(self) -> bool:
        """Whether it still runs."""
        return not self._reader.done()

    async def run(self, job: Job, blob: int, progress: Progress = lambda _fetched, _unpacked: None) -> Unpacked:
        """Unpack from the descriptor `blob`, which is closed; `progress` is told as it comes in.

        Raises BadImage with why it cannot be unpacked. Nothing works on the directory any more when it returns,
        also when the caller was cancelled.
        """
        self._last += 1
        number = self._last
        pending = _Pending(asyncio.get_running_loop().create_future(), progress)
        self._pending[number] = pending
        try:
            message = {"job": number, "stacked": job.stacked, **msgspec.to_builtins(job)}
            socket.send_fds(self._jobs, [msgspec.json.encode(message)], [blob])
        except OSError as error:
            self._pending.pop(number)
            raise BadImage(f"the helper that unpacks layers is gone: {error.strerror}") from error
        finally:
            os.close(blob)
        answer = await self._answered(number, pending)
        if answer.error:
            raise BadImage(f"layer {job.layer} cannot be unpacked: {answer.error}")
        return answer.result()

    async def close(self) -> None:
        """End the helper and all its processes. Idempotent."""
        kill(self._process)
        self._jobs.close()
        # Its children die with it, and the end of its output says that the last of them has.
        await finish(self._gone())

    async def _gone(self) -> None:
        await asyncio.wait([self._reader])
        await self._process.wait()

    async def _answered(self, number: int, pending: _Pending) -> _Answer:
        try:
            return await asyncio.shield(pending.answer)
        except asyncio.CancelledError:
            if self.usable:
                self._jobs.send(msgspec.json.encode(number))
            await finish(_ended(pending.answer))
            raise

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                answer = msgspec.json.decode(line, type=_Answer)
                if answer.done:
                    self._pending.pop(answer.job).answer.set_result(answer)
                else:
                    self._pending[answer.job].progress(answer.fetched, answer.unpacked)
        except Exception as error:  # layers are hostile: what reads them may come to write anything
            report(error, "unpacking", "an answer of the helper that unpacks layers cannot be read; it is killed")
            kill(self._process)
        for pending in self._pending.values():
            pending.answer.set_result(_Answer(job=0, error="the helper that unpacks layers has ended"))
        self._pending.clear()


async def _ended(answer: asyncio.Future[_Answer]) -> None:
    await asyncio.wait([answer])


async def start() -> Unpacker:
    """Start a helper."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).parents[3])),
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_ANSWER,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
    return Unpacker(process, ours)


@asynccontextmanager
async def unpacker() -> AsyncIterator[Unpacker]:
    """A helper while the context lasts; it and all its processes are gone afterwards."""
    helper = await start()
    try:
        yield helper
    finally:
        await helper.close()
