# SPDX-License-Identifier: Apache-2.0
"""Locks and sockets of a killed process are taken over, those of a living one are not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from pvecri.linux import single_instance


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "place"


@asynccontextmanager
async def locked_file(path: Path) -> AsyncIterator[Callable[[], None]]:
    """A locked file; yields the function that unlocks it."""
    with ExitStack() as stack:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, fd)
        assert await single_instance.lock(fd)
        yield stack.close


async def try_lock(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        return await single_instance.lock(fd)
    finally:
        os.close(fd)


async def test_lock_waits_for_a_dying_owner(path: Path) -> None:
    async with locked_file(path) as unlock:
        waiting = asyncio.create_task(try_lock(path))
        await asyncio.sleep(0)  # it has tried once
        assert not waiting.done()
        unlock()
        assert await waiting


async def test_lock_of_a_living_process_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_instance, "LINGER", 0.05)
    async with locked_file(path):
        assert not await try_lock(path)


async def test_stale_socket_is_removed(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    waiting = asyncio.create_task(single_instance.remove_stale_socket(path))
    await asyncio.sleep(0)  # it has tried once
    assert path.is_socket()
    listener.close()
    assert await waiting
    assert not path.exists()
    assert await single_instance.remove_stale_socket(path)


async def test_socket_with_a_listener_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_instance, "LINGER", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert not await single_instance.remove_stale_socket(path)
    assert path.is_socket()


async def test_other_files_are_left_alone(path: Path) -> None:
    path.write_text("kept")
    assert await single_instance.remove_stale_socket(path)
    assert path.read_text() == "kept"


async def test_name_is_claimed_until_its_socket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_instance, "LINGER", 0.05)
    name = f"pvecri-test-{os.getpid()}"
    assert not single_instance.claimed(name)
    held = await single_instance.claim(name)
    assert held is not None
    assert single_instance.claimed(name)
    assert await single_instance.claim(name) is None
    held.close()
    assert not single_instance.claimed(name)
