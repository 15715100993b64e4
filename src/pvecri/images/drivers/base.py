# SPDX-License-Identifier: Apache-2.0
"""What every rootfs driver does: keep layers, and make containers' root filesystems of them.

Every method blocks and is called in a worker thread, by one caller at a time for any one layer or container;
different ones run at the same time. A driver keeps no state but what is on its storage: it may be a new object, in
a new process, for every call. tests/integration/rootfs_conformance.py holds every driver to this contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NewType, Protocol

from pvecri.images.usage import Usage
from pvecri.model import ContainerId, Value

LayerKey = NewType("LayerKey", str)
"""A driver's own name for a layer: letters and digits only."""

COMMAND_TIMEOUT: Final = 3600.0
"""Seconds for a program that a driver runs: mkfs and rm of millions of files take minutes."""


class Owner(Value, frozen=True):
    """The ids, outside its user namespace, of a container's root."""

    uid: int = 0
    gid: int = 0


class RootfsDriver(Protocol):
    """A kind of storage for layers and root filesystems.

    Failures of the storage are OSError with the path, or errors of pvecri.errors where there is advice to give.
    """

    stacked: bool
    """Whether a layer is unpacked on top of its parent's content: it has to wait for that, and whiteouts remove
    what they name. Otherwise it is unpacked by itself, with whiteouts and opaque directories in overlayfs' form.
    """
    root: Path
    """A directory on the filesystem that layers and writable layers take space of."""

    def setup(self) -> None:
        """Make what is missing and remove what a crash left half made. Idempotent; first of all calls.

        Mounts of root filesystems made afterwards show in mount namespaces that are cloned from this one. Raises
        FailedPrecondition when the storage cannot do what the driver needs.
        """
        ...

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        """The key of the last of these layers, given lowest first: of it alone, or of it on top of the others."""
        ...

    def layers(self) -> set[LayerKey]:
        """What is committed."""
        ...

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        """A directory to unpack a layer into; it is no layer until it is committed."""
        ...

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        """Make the directory the layer, at once or not at all. A layer of that key that exists already is kept."""
        ...

    def abort_layer(self, directory: Path) -> None:
        """Give up a directory of begin_layer. Idempotent."""
        ...

    def layer_usage(self, key: LayerKey) -> Usage | None:
        """What a committed layer takes, where that is cheap to tell and not just what its files take."""
        ...

    def check_layer(self, key: LayerKey) -> str:
        """What is wrong with a committed layer, as far as the storage can tell; empty for nothing. Takes long."""
        ...

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        """A committed layer to put on top of these, which gives directories their attributes back.

        `layers` lowest first, each with the directories that its archive left out (images/drivers/parents.py).
        None if none is needed, as it never is for a driver that stacks layers.
        """
        ...

    def remove_layer(self, key: LayerKey) -> None:
        """The layer is gone for `layers`; collect_garbage frees its space. No rootfs uses it. Idempotent."""
        ...

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        """A writable layer, empty, owned by the container's root; `layers` lowest first. Nothing is mounted.

        FileExistsError when the container has one already.
        """
        ...

    def mount_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], userns: Path | None) -> Path:
        """Mount the root filesystem; with `userns`, a user namespace's path, that namespace's ids own the image.

        What was written before is there again. Mounted already, it is left so. The returned path can be reached by
        every user, for a mapped root is one of them. FileNotFoundError without create_rootfs before.
        """
        ...

    def unmount_rootfs(self, container: ContainerId) -> None:
        """Unmount, in use or not. Idempotent."""
        ...

    def remove_rootfs(self, container: ContainerId) -> None:
        """Unmount and remove the writable layer; collect_garbage frees its space. Idempotent."""
        ...

    def rootfs_ids(self) -> set[ContainerId]:
        """The containers that have a writable layer, mounted or not."""
        ...

    def written(self, container: ContainerId) -> Usage:
        """What the container wrote, now or a little earlier; 0 when it has no root filesystem."""
        ...

    def writable_layer(self, container: ContainerId) -> Path:
        """The directory whose content is what the container wrote, as whiteouts or copies too.

        Unimplemented where a container has a whole tree of its own.
        """
        ...

    def collect_garbage(self) -> None:
        """Free what was removed. Slow; never called twice at a time, and safe to break off."""
        ...

    def sync(self) -> None:
        """Return when all committed layers would survive a power cut."""
        ...
