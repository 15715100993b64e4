# SPDX-License-Identifier: Apache-2.0
"""A filesystem that does not answer, as one of a dead NFS server: a FUSE mount whose requests nobody reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvecri.linux import mounts


@contextmanager
def hung_filesystem(directory: Path) -> Iterator[None]:
    """Mount one at `directory`: stat(2) of it blocks until the context ends, and fails then (ENOTCONN)."""
    requests = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mounts.mount("hung", directory, "fuse", 0, f"fd={requests},rootmode=40000,user_id=0,group_id=0")
    except BaseException:
        os.close(requests)
        raise
    try:
        yield
    finally:
        os.close(requests)  # the kernel ends the connection, and with it all that waits
        mounts.umount(directory, detach=True)
