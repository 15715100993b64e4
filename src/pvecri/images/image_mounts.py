# SPDX-License-Identifier: Apache-2.0
"""Root filesystems of images, mounted for people: `<images.root>/mounts/<image>-<mount>.json`, a record for each.

`pvecri image` mounts them in its own process, the daemon running or not, and the daemon keeps an image that has a
record. If one process writes a record and then looks for the image, and another looks for records and then removes
the image, at least one of them sees the other.

A record is valid as long as a process has it locked (flock(2)), or its directory has the mount. All others are
what a crash, an `umount` or a reboot of the node has left, and are removed with their root filesystem.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from pvecri.errors import FailedPrecondition, PvecriError
from pvecri.images.drivers.base import LayerKey, Owner, RootfsDriver
from pvecri.linux import mounts
from pvecri.model import ContainerId, ImageId, Value

log = logging.getLogger(__name__)

_SUFFIX: Final = ".json"
_DRAFT: Final = ".new"
_ATTRIBUTES: Final = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV
"""An image's set-user-ID programs must not be reachable for the node's users (decision 0053)."""


class ImageMount(Value, frozen=True):
    """A root filesystem of `image`, named `rootfs` to the driver.

    `target` is the directory it is mounted at, and `device` its st_dev there; without, it is only used by the
    process that has the record locked.
    """

    rootfs: ContainerId
    image: ImageId
    target: str = ""
    device: int = 0


class ImageMounts:
    """The mounts with records in `directory`. All methods block, and may be called from any process."""

    def __init__(self, directory: Path, driver: RootfsDriver) -> None:
        self._directory = directory
        self._driver = driver

    def setup(self) -> None:
        """Create the directory, and remove what is not valid. Idempotent."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self.heal()

    def all(self) -> list[ImageMount]:
        """All records, valid or not."""
        return [record for path in self._paths() if (record := _read(path))]

    def heal(self) -> None:
        """Remove records that are not valid, with their root filesystems."""
        for path in self._paths():
            try:
                self._heal(path)
            except (OSError, PvecriError) as error:
                log.warning("the mount of an image stays on the storage for now: %s: %s", path, error)
        for draft in self._directory.glob(f"*{_DRAFT}"):
            with _locked(draft) as fd:
                if fd is not None:
                    draft.unlink(missing_ok=True)

    def of(self, image: ImageId) -> list[ImageMount]:
        """The valid mounts of an image; those that are not are removed."""
        for path in self._paths(image):
            self._heal(path)
        return [record for path in self._paths(image) if (record := _read(path))]

    def has(self, image: ImageId) -> bool:
        """Whether an image has a record, valid or not. Reads one directory only."""
        return any(True for _ in self._paths(image))

    @contextmanager
    def mounted(self, image: ImageId, stack: Callable[[], Sequence[LayerKey]]) -> Iterator[Path]:
        """A writable root filesystem of an image, for this process until the context ends.

        `stack` returns the image's layers, lowest first; it is called when the image is protected, and raises if
        there is no such image any more.
        """
        record = ImageMount(rootfs=_new_name(), image=image)
        with ExitStack() as release, ExitStack() as undo:
            yield self._make(record, stack, release, undo)

    def mount(self, image: ImageId, stack: Callable[[], Sequence[LayerKey]], target: Path) -> None:
        """Mount an image read-only at `target`, until `unmount`. Idempotent.

        `stack` as for `mounted`. FailedPrecondition if another image is mounted there.
        """
        self.heal()
        there = next((each for each in self.all() if each.target == str(target)), None)
        if there is not None:
            if there.image == image:
                return
            raise FailedPrecondition(f"{target}: image {there.image} is mounted there")
        record = ImageMount(rootfs=_new_name(), image=image, target=str(target))
        with ExitStack() as release, ExitStack() as undo:
            root = self._make(record, stack, release, undo)
            clone = mounts.open_tree(root, mounts.OPEN_TREE_CLONE)
            release.callback(os.close, clone)
            mounts.mount_setattr(clone, attributes=_ATTRIBUTES, propagation=mounts.MS_PRIVATE, path=root)
            mounts.move_mount(clone, target)
            undo.callback(mounts.umount, target, detach=True)
            release.callback(os.close, self._write(replace(record, device=target.stat().st_dev)))
            undo.pop_all()

    def unmount(self, record: ImageMount) -> None:
        """Unmount an image and remove its record. Idempotent. FailedPrecondition while its files are in use."""
        path = self._path(record)
        with _locked(path) as fd:
            if fd is None:
                if not path.exists():
                    return
                raise FailedPrecondition(f"image {record.image} is being used by another `pvecri image`")
            if _in_place(record):
                _unmount(Path(record.target))
            self._remove(path, record)

    def _make(
        self, record: ImageMount, stack: Callable[[], Sequence[LayerKey]], release: ExitStack, undo: ExitStack
    ) -> Path:
        """Make and mount a root filesystem; `undo` removes it, and `release` unlocks its record."""
        # The record first, and then the image: whoever removes the image looks in the other order.
        release.callback(os.close, self._write(record))
        undo.callback(self._remove, self._path(record), record)
        layers = stack()
        self._driver.create_rootfs(record.rootfs, layers, Owner())
        return self._driver.mount_rootfs(record.rootfs, layers, None)

    def _write(self, record: ImageMount) -> int:
        """Create or replace a record; a descriptor that has it locked."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._path(record)
        draft = path.with_suffix(_DRAFT)
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Before anybody sees it: the lock is the file's, whatever its name becomes.
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, msgspec.json.encode(record))
            draft.replace(path)
        except BaseException:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
        return fd

    def _heal(self, path: Path) -> None:
        with _locked(path) as fd:
            if fd is None:
                return
            record = _read(path)
            if record is None:  # a power cut left it empty: no mount outlives that
                path.unlink(missing_ok=True)
            elif not _in_place(record):
                self._remove(path, record)

    def _remove(self, path: Path, record: ImageMount) -> None:
        self._driver.remove_rootfs(record.rootfs)
        path.unlink(missing_ok=True)

    def _path(self, record: ImageMount) -> Path:
        return self._directory / f"{record.image.removeprefix('sha256:')}-{record.rootfs}{_SUFFIX}"

    def _paths(self, image: ImageId | None = None) -> list[Path]:
        name = image.removeprefix("sha256:") if image else "*"
        return sorted(self._directory.glob(f"{name}-*{_SUFFIX}"))


def _new_name() -> ContainerId:
    # Containers' names are 64 digits.
    return ContainerId(f"mount{secrets.token_hex(16)}")


def _read(path: Path) -> ImageMount | None:
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=ImageMount)
    return None


def _in_place(record: ImageMount) -> bool:
    """Whether the directory of a record has its mount, and not another one."""
    if not record.device:
        return False
    try:
        return mounts.is_mountpoint(Path(record.target)) and Path(record.target).stat().st_dev == record.device
    except OSError:
        return False


def _unmount(target: Path) -> None:
    try:
        mounts.umount(target, detach=False)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FailedPrecondition(f"{target} is in use; `fuser -vm {target}` shows by whom") from error
        raise


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """A descriptor that has the file locked; None if another one has, or if there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
