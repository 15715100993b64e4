# SPDX-License-Identifier: Apache-2.0
"""Writing an image's root filesystem to one file: a tar archive, or an ext4 or EROFS filesystem.

The same image from the same store is the same file, byte by byte: entries are sorted, and what would differ from
call to call (process IDs, times of access, UUIDs) is left out or taken from the image.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from pvecri.errors import AlreadyExists
from pvecri.images.drivers.base import COMMAND_TIMEOUT
from pvecri.images.usage import tree_usage
from pvecri.linux import programs
from pvecri.model import ImageId

FILESYSTEMS: Final = ("ext4", "erofs")

_SPARE: Final = 64 << 20
"""Bytes of an ext4 filesystem beyond the files, for its own structures."""
_INODE: Final = 256 + 4096
"""Bytes for an inode, and for a block of attributes or of a directory."""


def tar_command(root: Path) -> list[str]:
    """tar(1) that writes all files below `root` to stdout, or to `--file`: numeric owners, attributes, holes.

    tarfile writes no holes and no extended attributes.
    """
    options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "--sort=name"]
    # By default the names of extended headers have tar's process ID, and access times differ from call to call.
    headers = "--pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f"
    # The headers of sparse files always have it: in a namespace of its own it is 1.
    return [
        *("unshare", "--pid", "--fork", "--kill-child"),
        *("tar", "--create", *options, headers, "-C", str(root), "."),
    ]


async def write_tar(root: Path, target: Path, *, compressed: bool) -> None:
    """Write a tar archive of the files below `root`, by zstd(1) if it is to be compressed."""
    # zstd's output is the same for any number of threads.
    compressor = ["--use-compress-program", "zstd -q -T0"] if compressed else []
    tar = [*tar_command(root), "--file", str(target), *compressor]
    (await programs.run(tar, timeout=COMMAND_TIMEOUT, name="tar")).checked()


async def write_filesystem(kind: str, root: Path, target: Path, image: ImageId, created: int) -> None:
    """Write a filesystem of the files below `root`: one of FILESYSTEMS, its UUID from the image's ID.

    `created` is the time of the filesystem, in seconds since the epoch; of an EROFS also that of all its files:
    mkfs.erofs has no other way to the same output twice.
    """
    uuid = str(UUID(image.removeprefix("sha256:")[:32]))
    if kind == "erofs":
        # Compact inodes have 16 bits for owners.
        command = ["mkfs.erofs", "--quiet", "-x1", "-Eforce-inode-extended", "-U", uuid, f"-T{created}"]
        command += [str(target), str(root)]
    else:
        used = tree_usage(root)
        size = used.bytes + used.inodes * _INODE + _SPARE
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-E", f"hash_seed={uuid}"]
        # Who grows the filesystem later has room for it. Without a journal: it can be added by tune2fs -j.
        command += ["-m", "0", "-O", "^has_journal", "-N", str(used.inodes + 1024)]
        command += ["-d", str(root), str(target), f"{size >> 10}k"]
    # 0 would be no time to mke2fs.
    times = {"E2FSPROGS_FAKE_TIME": str(max(created, 1)), "SOURCE_DATE_EPOCH": str(max(created, 1))}
    (await programs.run(command, timeout=COMMAND_TIMEOUT, env=os.environ | times)).checked()


def created(config: dict[str, object]) -> int:
    """When an image was made, by its config, in seconds since the epoch; 0 if the config does not have it."""
    with suppress(ValueError, OverflowError):
        return max(0, int(datetime.fromisoformat(str(config.get("created"))).timestamp()))
    return 0


def set_top_time(root: Path, time: int) -> None:
    """Set the time of the root directory, which a root filesystem has from when it was mounted."""
    os.utime(root, (time, time))


@asynccontextmanager
async def new_file(target: Path, option: str) -> AsyncIterator[Path]:
    """A name beside `target` to write to. It becomes `target` if the context ends without an error, else it goes.

    AlreadyExists, naming `option`, if there is such a file, before or afterwards.
    """
    exists = AlreadyExists(f"{option}: {target} exists already")
    if target.exists():
        raise exists
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield draft
        try:
            target.hardlink_to(draft)  # rename(2) would replace a file
        except FileExistsError as error:
            raise exists from error
    finally:
        draft.unlink(missing_ok=True)


def template_name(names: Sequence[str], image: ImageId) -> str:
    """The name of a CT template of an image: NAME_TAG_DIGEST.tar.zst, of the characters that Proxmox allows."""
    name, _, tag = (names[0] if names else "image").rpartition("/")[2].partition(":")
    words = (name.partition("@")[0], tag or "untagged", image.removeprefix("sha256:")[:12])
    shown = ("".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in word) for word in words)
    return "_".join(shown) + ".tar.zst"
