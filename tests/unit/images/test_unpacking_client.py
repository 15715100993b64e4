# SPDX-License-Identifier: Apache-2.0
"""Answers of the worker that cannot be read do not leave a job waiting."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from pvecri.images.manifest import BadImage
from pvecri.images.unpacking.client import Job, Unpacker

JOB = Job(layer="sha256:1", directory="/nowhere", max_size=1, max_entries=1)


@pytest.mark.parametrize("answer", ["no JSON", '{"job": 77, "error": "no such job"}', '{"job": "one"}'])
async def test_unreadable_answer_ends_the_worker_and_its_jobs(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await asyncio.create_subprocess_exec(
        "sh", "-c", 'echo "$1"; exec sleep 1000', "sh", answer, stdout=asyncio.subprocess.PIPE
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        unpacker = Unpacker(worker, ours)
        with pytest.raises(BadImage, match="sha256:1 cannot be unpacked: its worker has ended"):
            await unpacker.run(JOB, os.open("/dev/null", os.O_RDONLY))
        assert await worker.wait() < 0
        await unpacker.close()
    assert "cannot be read; it is killed" in caplog.text


async def test_second_answer_for_a_job_is_ignored() -> None:
    """The process of a cancelled job may have answered before SIGKILL reached it."""
    answers = (f'{{"job": {job}, "error": "answer {number}"}}' for number, job in enumerate((1, 1, 2)))
    worker = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'read -r _; printf "%s\\n" "$@"; exec sleep 1000', "sh", *answers),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdin is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        unpacker = Unpacker(worker, ours)
        blobs = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
        jobs = [asyncio.ensure_future(unpacker.run(JOB, blob)) for blob in blobs]
        await asyncio.sleep(0)  # both jobs are sent
        worker.stdin.write(b"go\n")
        first, second = await asyncio.gather(*jobs, return_exceptions=True)
        assert (str(first)[-8:], str(second)[-8:]) == ("answer 0", "answer 2")
        assert unpacker.usable
        await unpacker.close()


async def test_job_for_a_worker_that_has_ended_is_refused() -> None:
    """Its socket may be open still, in a child of the worker."""
    worker = await asyncio.create_subprocess_exec("true", stdout=asyncio.subprocess.PIPE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        unpacker = Unpacker(worker, ours)
        while unpacker.usable:
            await asyncio.sleep(0.001)
        blob = os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(BadImage, match="sha256:1 cannot be unpacked: its worker has ended"):
            await asyncio.wait_for(unpacker.run(JOB, blob), 5)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(blob)
        await unpacker.close()
