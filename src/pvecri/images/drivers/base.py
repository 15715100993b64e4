# SPDX-License-Identifier: Apache-2.0
"""The contract of a rootfs driver: a kind of storage for layers and containers' root filesystems.

Every method blocks and is called in a worker thread, by one caller at a time for any one layer or container;
different ones run concurrently. All of a driver's state is on its storage: each call may come from a new object,
in a new process. tests/integration/rootfs_conformance.py holds every driver to this contract.

An image of two layers, with diff IDs A and B, and one container, as the Image Manager calls a driver:

    driver.setup()                                  # at the daemon's start: removes what a crash left half-made

    a = driver.layer_key(["sha256:A"])              # the keys; overlay's are "A" and "B", for btrfs and zfs
    b = driver.layer_key(["sha256:A", "sha256:B"])  # that of b is the chain ID of both

    directory = driver.begin_layer(a, None)         # the pull extracts A's archive into the directory, and
    driver.commit_layer(a, directory)               # verifies its diff ID; only then it is in layers()
    directory = driver.begin_layer(b, a)            # `stacked`: the directory already has the files of A;
    driver.commit_layer(b, directory)               # else it is empty, and both may be extracted concurrently
    # A broken archive or a cancelled pull: driver.abort_layer(directory), and no trace of it is left.

    driver.hidden_links([(a, frozenset()), (b, frozenset({"tmp"}))])
                                                    # if tmp is a symlink in A, the pull extracts B once more, as
                                                    # another layer in which tmp/x is at the link's target
    top = driver.parents_layer([(a, frozenset()), (b, frozenset({"tmp"}))])
                                                    # B's archive had tmp/x without tmp: a layer that gives tmp
    layers = [a, b, *([top] if top else [])]        # the attributes it has in A; None for most images

    driver.create_rootfs("c1", layers, Owner(100000, 100000))          # an empty writable layer
    root = driver.mount_rootfs("c1", layers, Path("/proc/42/ns/user")) # CreateContainer; A's file of UID 0 belongs
                                                                       # to 100000, which is root in the container
    driver.written("c1")                            # ContainerStats: the usage of the writable layer
    driver.unmount_rootfs("c1")                     # the pod stops, or the node restarts:
    driver.mount_rootfs("c1", layers, userns)       # what the container wrote is there again
    driver.remove_rootfs("c1")                      # RemoveContainer

    driver.remove_layer(b)                          # RemoveImage, once no image and no container has the layer;
    driver.remove_layer(a)                          # for stacked drivers a child goes before or after its parent
    driver.collect_garbage()                        # in the background: frees the space of all that was removed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NewType, Protocol

from pvecri.images.usage import Usage
from pvecri.model import ContainerId, Value

LayerKey = NewType("LayerKey", str)
"""A driver's name for a layer: letters and digits only."""

COMMAND_TIMEOUT: Final = 3600.0
"""Seconds for a program that a driver runs: mkfs and rm of millions of files take minutes."""


class Owner(Value, frozen=True):
    """The host IDs of a container's root."""

    uid: int = 0
    gid: int = 0


class RootfsDriver(Protocol):
    """A kind of storage for layers and root filesystems.

    Failures of the storage are OSError with the path, or errors of pvecri.errors if a setting can help.
    """

    stacked: bool
    """Whether a layer is extracted on top of its parent's content: it has to wait for the parent, and whiteouts
    remove the files that they name. Otherwise whiteouts and opaque directories are stored in overlayfs' form.
    """
    root: Path
    """A directory on the filesystem whose space layers and writable layers use."""

    def setup(self) -> None:
        """Create what is missing and remove what a crash left half-made. Idempotent; called before all others.

        Later mounts of root filesystems propagate to mount namespaces that are cloned from this one. Raises
        FailedPrecondition if the storage cannot do what the driver needs.
        """
        ...

    def layer_key(self, diff_ids: Sequence[str]) -> LayerKey:
        """The key of the last of these layers, given lowest first: of it alone, or of it on top of the others."""
        ...

    def layers(self) -> set[LayerKey]:
        """The committed layers."""
        ...

    def begin_layer(self, key: LayerKey, parent: LayerKey | None) -> Path:
        """A new directory to extract a layer into."""
        ...

    def commit_layer(self, key: LayerKey, directory: Path) -> None:
        """Make the directory the layer, atomically. If there is a layer of that key already, that one is kept."""
        ...

    def abort_layer(self, directory: Path) -> None:
        """Remove a directory of begin_layer, if it was not committed. Idempotent."""
        ...

    def layer_usage(self, key: LayerKey) -> Usage | None:
        """The usage of a committed layer, if it is cheap to find out and not simply that of its files."""
        ...

    def check_layer(self, key: LayerKey) -> str:
        """The damage to a committed layer, as far as the storage can detect it; empty for none. Takes long."""
        ...

    def hidden_links(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> dict[str, str]:
        """The symlinks of lower layers, with their targets by path, that the topmost layer must be extracted with.

        `layers` as for parents_layer. For most images, and always for a driver that stacks layers, there are none
        (drivers/hidden_links.py).
        """
        ...

    def parents_layer(self, layers: Sequence[tuple[LayerKey, frozenset[str]]]) -> LayerKey | None:
        """Commit a layer to put on top of these, which restores attributes of directories (drivers/parents.py).

        `layers` lowest first, each with the directories that its archive left out. None if none is needed, as
        always for a driver that stacks layers.
        """
        ...

    def remove_layer(self, key: LayerKey) -> None:
        """Remove the layer from `layers`; collect_garbage frees its space. No rootfs may use it. Idempotent."""
        ...

    def create_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], owner: Owner) -> None:
        """Create an empty writable layer, owned by `owner`; `layers` lowest first. Mounts nothing.

        FileExistsError if the container has one already.
        """
        ...

    def mount_rootfs(self, container: ContainerId, layers: Sequence[LayerKey], userns: Path | None) -> Path:
        """Mount the root filesystem, if it is not mounted, with the files that the container wrote before.

        With `userns`, the path of a user namespace, it is idmapped by that namespace. Every user can reach the
        returned path, for the root of a user namespace is an ordinary user. FileNotFoundError without
        create_rootfs before.
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
        """The usage of the writable layer, now or shortly before; 0 if there is none."""
        ...

    def writable_layer(self, container: ContainerId) -> Path:
        """The directory of the files that the container wrote, in overlayfs' form.

        Unimplemented if a container has a whole tree of its own.
        """
        ...

    def collect_garbage(self) -> None:
        """Free the space of what was removed. Slow; never called concurrently, and safe to interrupt."""
        ...

    def sync(self) -> None:
        """Return when all committed layers would survive a power cut."""
        ...
