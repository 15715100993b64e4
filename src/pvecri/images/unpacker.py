# SPDX-License-Identifier: Apache-2.0
"""The other end of unpack.py: starts the helper, gives it jobs, reads its answers."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from pvecri.cancellation import finish
from pvecri.images.manifest import BadImage
from pvecri.model import Value

_START: Final = "import sys; sys.path.append(sys.argv[1]); from pvecri.images.unpack import main; main()"


MAX_ANSWER: Final = 64 << 20


class Job(Value, frozen=True):
    """Unpack the layer blob at `blob` into `directory`, within the limits of the configuration.

    The directory is empty; `stacked`, it holds the layers below, to which this one is applied.
    """

    blob: str
    directory: str
    max_size: int
    max_entries: int
    stacked: bool = False


class Unpacked(Value, frozen=True):
    """What came out: the digest of the uncompressed archive, and what its files take.

    `implicit` are directories, relative to the layer, that the archive left out (`.` is the layer itself).
    """

    diff_id: str
    bytes: int
    inodes: int
    implicit: tuple[str, ...] = ()


class _Answer(Value, frozen=True):
    job: int
    diff_id: str = ""
    bytes: int = 0
    inodes: int = 0
    implicit: tuple[str, ...] = ()
    error: str = ""

    def result(self) -> Unpacked:
        return Unpacked(diff_id=self.diff_id, bytes=self.bytes, inodes=self.inodes, implicit=self.implicit)


class Unpacker:
    """A running helper; `unpacker` makes it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, jobs: Sequence[Job]) -> list[Unpacked]:
        """Do the jobs, in parallel, and return their results in their order.

        Raises BadImage with the file name of the first blob that cannot be unpacked, and why.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(jobs) + b"\n")
        await self._process.stdin.drain()
        results: dict[int, Unpacked] = {}
        while len(results) < len(jobs):
            answer = await self._answer()
            if answer.error:
                raise BadImage(f"layer {Path(jobs[answer.job].blob).name} cannot be unpacked: {answer.error}")
            results[answer.job] = answer.result()
        return [results[number] for number in range(len(jobs))]

    async def _answer(self) -> _Answer:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise BadImage(f"the helper that unpacks layers ended with {await self._process.wait()}")
        return msgspec.json.decode(line, type=_Answer)


@asynccontextmanager
async def unpacker() -> AsyncIterator[Unpacker]:
    """A helper while the context lasts; it and all its processes are gone afterwards.

    Started before there is anything to unpack, its start-up takes no time from the pull.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).parents[2])),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_ANSWER,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    try:
        yield Unpacker(process)
    finally:
        if process.returncode is None:
            process.kill()
        # Its children die with it, and the end of its output says that the last of them has.
        await finish(process.communicate())
