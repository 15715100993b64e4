# SPDX-License-Identifier: AGPL-3.0-or-later
"""The system calls a CT's mounts need: mount, unshare and the loop device's ioctls."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_CONFIG_SIZE = 304
_LO_FLAGS_OFFSET = 8 + 52
_EBUSY = errno.EBUSY
_EBUSY_ATTEMPTS = 64
_DETACH_TIMEOUT_S = 10.0
_DETACH_POLL_S = 0.005

# Not pvecri.linux: this distribution imports nothing of pvecri (decision 0009).
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: Path | str, target: Path | str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def bind(source: Path, target: Path) -> None:
    """Bind-mount ``source`` on ``target``, without what is mounted below it."""
    mount(source, target, "none", MS_BIND)


def remount_read_only(target: Path) -> None:
    # mount(2) ignores MS_RDONLY in the call that makes a bind mount.
    mount("none", target, "none", MS_REMOUNT | MS_BIND | MS_RDONLY)


def unshare_mounts() -> None:
    """Give the calling *thread* a mount namespace of its own that still receives the host's mounts."""
    # This implies CLONE_FS, so the thread's root and working directory are its own as well: unshare(2).
    if _libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    mount("none", "/", "none", MS_REC | MS_SLAVE)


def mount_image(image: Path, target: Path, fstype: str = "ext4") -> None:
    """Mount a filesystem image file through a loop device that goes away with its last mount."""
    _wait_detached(image)
    device = _attach_loop(image)
    try:
        mount(f"/dev/loop{_loop_number(device)}", target, fstype)
    finally:
        os.close(device)


def unmount(target: Path) -> None:
    if _libc.umount2(os.fsencode(target), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def _wait_detached(image: Path) -> None:
    """Wait for the loop device of an earlier mount: the kernel frees it some time after the last process."""
    deadline = time.monotonic() + _DETACH_TIMEOUT_S
    while any(_backing_file(path) == str(image) for path in Path("/sys/block").glob("loop*/loop/backing_file")):
        if time.monotonic() > deadline:
            raise OSError(_EBUSY, "a loop device still holds the image", str(image))
        time.sleep(_DETACH_POLL_S)


def _backing_file(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # freed since it was listed


def _loop_number(device: int) -> int:
    return os.minor(os.fstat(device).st_rdev)


def _attach_loop(image: Path) -> int:
    """A free loop device with ``image`` behind it, as an open fd; the last close frees it (autoclear)."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_EBUSY_ATTEMPTS):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            try:
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            finally:
                os.close(control)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            if _configure_loop(device, backing):
                return device
            os.close(device)
        raise OSError(f"{image}: every free loop device was taken by another process")
    finally:
        os.close(backing)


def _configure_loop(device: int, backing: int) -> bool:
    """LOOP_CONFIGURE; False when another process took the device since it was offered as free."""
    config = bytearray(_LOOP_CONFIG_SIZE)
    config[0:4] = backing.to_bytes(4, "little")
    # struct loop_config: descriptor, block size, then a struct loop_info64, whose lo_flags is at 52.
    config[_LO_FLAGS_OFFSET : _LO_FLAGS_OFFSET + 4] = _LO_FLAGS_AUTOCLEAR.to_bytes(4, "little")
    try:
        fcntl.ioctl(device, _LOOP_CONFIGURE, config)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == _EBUSY:
            return False
        raise
    return True


def in_namespace_of_its_own(function: Callable[[], T]) -> T:
    """Run ``function`` in a new thread with a mount namespace that ends with it; wait for the result."""

    def run() -> T:
        unshare_mounts()
        return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()
