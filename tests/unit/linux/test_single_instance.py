# SPDX-License-Identifier: Apache-2.0
"""What a killed process leaves, and what a living one has."""

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
async def held(path: Path) -> AsyncIterator[Callable[[], None]]:
    """A locked file, and what lets it go."""
    with ExitStack() as stack:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, fd)
        assert await single_instance.lock(fd)
        yield stack.close


async def locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        return await single_instance.lock(fd)
    finally:
        os.close(fd)


async def test_lock_waits_for_a_dying_owner(path: Path) -> None:
    async with held(path) as let_go:
        waiting = asyncio.create_task(locked(path))
        await asyncio.sleep(0)  # it has tried once
        assert not waiting.done()
        let_go()
        assert await waiting


async def test_lock_of_a_living_process_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_instance, "LINGER", 0.05)
    async with held(path):
        assert not await locked(path)


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
