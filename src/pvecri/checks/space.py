# SPDX-License-Identifier: Apache-2.0
"""Free space and inodes where the daemon writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config

SUBJECT = "space"

MIN_BYTES = {"runtime.run_dir": 16 << 20, "runtime.state_dir": 256 << 20, "images.root": 1 << 30}
"""Bytes below which pods will soon fail to start, by setting."""
MIN_INODES = 1000


def check(config: Config, min_bytes: dict[str, int] = MIN_BYTES) -> Iterator[Finding]:
    """Whether the filesystems are writable and have room; directories need not exist yet."""
    paths = {
        "runtime.run_dir": config.runtime.run_dir,
        "runtime.state_dir": config.runtime.state_dir,
        "images.root": config.images_root,
    }
    for setting, path in paths.items():
        filesystem = _existing(path)
        found = os.statvfs(filesystem)
        if found.f_flag & os.ST_RDONLY or not filesystem.is_dir():
            yield Finding(
                "problem", SUBJECT, f"{setting}: {path} is not writable", "remount it, or choose another"
            )
            continue
        free = found.f_bavail * found.f_frsize
        if free < min_bytes[setting]:
            message = f"{setting}: {path} has {free >> 20} MiB left"
            yield Finding("warning", SUBJECT, message, "free some, or enlarge the filesystem")
        # A filesystem such as btrfs has no fixed number of inodes, which is 0 here.
        if found.f_files and found.f_favail < MIN_INODES:
            message = f"{setting}: {path} has {found.f_favail} inodes left"
            yield Finding("warning", SUBJECT, message, "remove files")


def _existing(path: Path) -> Path:
    """The nearest of it and its parents that exists."""
    return next(each for each in (path, *path.parents) if each.exists())
