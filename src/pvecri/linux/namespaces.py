# SPDX-License-Identifier: Apache-2.0
"""Namespaces: pinned by bind mounts, and entered by a thread (namespaces(7), setns(2))."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pvecri.linux import libc, mounts

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000

T = TypeVar("T")


def pin(namespace: Path, target: Path) -> None:
    """Keep a namespace (`/proc/PID/ns/net`) alive by a bind mount on the new file `target`."""
    target.touch(mode=0o444)  # a file can only be bound on a file
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
        libc.call("setns", fd, 0, path=namespace)  # 0: of whatever type the file is
    finally:
        os.close(fd)


def run_inside(namespaces: list[Path], function: Callable[[], T]) -> T:
    """The result of `function`, called inside net, ipc or uts namespaces; its exceptions are raised.

    It runs in a thread of its own, which is not reused: nothing has to be switched back. Blocks: call it from a
    worker thread.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            for namespace in namespaces:
                setns(namespace)
            outcome.append(function())
        except BaseException as error:  # raised below, in the caller's thread
            failure.append(error)

    # setns(2) applies to the calling thread alone. A user or PID namespace cannot be entered so: for these the
    # kernel wants a single-threaded process, or affects children only.
    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def run_in_mount_namespace(namespace: int, function: Callable[[], T]) -> T:
    """As `run_inside`, in the mount namespace that is open as `namespace`. Its root is the function's, too."""

    def enter() -> T:
        # Only a thread that shares its root and working directory with no other may change them (setns(2)).
        libc.call("unshare", CLONE_FS)
        libc.call("setns", namespace, CLONE_NEWNS)
        return function()

    return run_inside([], enter)


def open_socket(netns: Path, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    """A socket of a network namespace: it stays in the one it was made in, whichever thread uses it.

    Blocks: call it from a worker thread. FileNotFoundError if the namespace is gone.
    """
    return run_inside([netns], lambda: socket.socket(family, kind))
