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
