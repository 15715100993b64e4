# SPDX-License-Identifier: Apache-2.0
"""Nobody waits for the count of a writable layer but the first who asks."""

from __future__ import annotations

import asyncio

import pytest

from pvecri.model import FilesystemUsage
from pvecri.pods.usage import writable_layers
from pvecri.pods.usage.writable_layers import WritableLayers
from pvecri.supervision import Supervisor


class Counter:
    """Counts how often it was asked, and answers when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.broken = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def count(self, container_id: str) -> FilesystemUsage:
        self.asked += 1
        if self.broken:
            raise OSError("input/output error")
        number = self.asked
        await self.may_answer.wait()
        return FilesystemUsage(mountpoint=container_id, used_bytes=number, inodes_used=0, timestamp=number)


async def bytes_of(known: WritableLayers) -> int | None:
    usage = await known.usage("a")
    return None if usage is None else usage.used_bytes


async def test_fresh_count_is_reused() -> None:
    counter = Counter()
    known = WritableLayers(counter.count, Supervisor())
    assert [await bytes_of(known) for _ in range(3)] == [1, 1, 1]


async def test_concurrent_requests_share_one_count() -> None:
    counter = Counter()
    known = WritableLayers(counter.count, Supervisor())
    assert await asyncio.gather(*(bytes_of(known) for _ in range(5))) == [1] * 5


async def test_older_count_is_returned_while_a_new_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    known = WritableLayers(counter.count, Supervisor())
    await known.usage("a")
    monkeypatch.setattr(writable_layers, "FRESH", 0.0)
    counter.may_answer.clear()
    assert await bytes_of(known) == 1
    counter.may_answer.set()
    monkeypatch.setattr(writable_layers, "STALE", 0.0)
    assert await bytes_of(known) == 2


async def test_stale_count_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    known = WritableLayers(counter.count, Supervisor())
    await known.usage("a")
    monkeypatch.setattr(writable_layers, "FRESH", 0.0)
    monkeypatch.setattr(writable_layers, "STALE", 0.0)
    assert await bytes_of(known) == 2


async def test_cancelled_request_does_not_cancel_the_count() -> None:
    counter = Counter()
    counter.may_answer.clear()
    known = WritableLayers(counter.count, Supervisor())
    first, second = (asyncio.create_task(bytes_of(known)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    counter.may_answer.set()
    assert await second == 1


async def test_counts_of_removed_containers_are_dropped() -> None:
    counter = Counter()
    known = WritableLayers(counter.count, Supervisor())
    await known.usage("a")
    known.keep(set())
    assert await bytes_of(known) == 2


async def test_close_cancels_running_counts() -> None:
    counter = Counter()
    counter.may_answer.clear()
    supervisor = Supervisor()
    known = WritableLayers(counter.count, supervisor)
    waiting = asyncio.create_task(known.usage("a"))
    await asyncio.sleep(0)
    await supervisor.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_failed_count_is_none(caplog: pytest.LogCaptureFixture) -> None:
    counter = Counter()
    counter.broken = True
    known = WritableLayers(counter.count, Supervisor())
    assert [await known.usage("a") for _ in range(2)] == [None, None]
    assert counter.asked == 1
    assert "input/output error" in caplog.text
