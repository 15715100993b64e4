# SPDX-License-Identifier: Apache-2.0
"""Namespaces: pinning one by a bind mount, and acting inside one from a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pvecri.linux import libc, mounts

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

T = TypeVar("T")


def pin(namespace: Path, target: Path) -> None:
    """Keep a namespace (`/proc/PID/ns/net`) alive, and give it a path: a bind mount on the file `target`."""
    target.touch(mode=0o444)
    try:
        mounts.bind(namespace, target, recursive=False)
    except OSError:
        target.unlink()
        raise


def unpin(target: Path) -> None:
    """Undo `pin`. Idempotent."""
    with suppress(OSError):  # not there, or not mounted
        mounts.umount(target, detach=True)
    target.unlink(missing_ok=True)


def setns(namespace: Path) -> None:
    """Move the calling thread into a namespace."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("setns", fd, 0, path=str(namespace))
    finally:
        os.close(fd)


def run_inside(namespaces: list[Path], function: Callable[[], T]) -> T:
    """Call `function` inside net, ipc or uts namespaces, in a thread that ends with it.

    The thread is never reused, so nothing needs to be switched back. What `function` raises is raised.
    Blocks: call it from a worker thread.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            for namespace in namespaces:
                setns(namespace)
            outcome.append(function())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
