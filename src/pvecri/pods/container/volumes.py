# SPDX-License-Identifier: Apache-2.0
"""A container's mounts and devices: checked, and idmapped for the pod's user namespace."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from pvecri.errors import FailedPrecondition, InvalidArgument
from pvecri.linux import idmapped, mounts
from pvecri.linux.openat2 import open_in_root
from pvecri.model import Container, ContainerConfig, Mount, Propagation
from pvecri.oci.devices import HostDevice
from pvecri.oci.plan import BindSource
from pvecri.pods import user_namespaces
from pvecri.pods.container import volume_owners

log = logging.getLogger(__name__)

IMAGE_VOLUME_FAILED: Final = "ImageVolumeMountFailed"
"""The reason by which clients recognize the error, as with CRI-O and containerd (pkg/errors of cri-api)."""

_PER_CONTAINER = ("/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console", "/dev/.lxc", "/dev/.udev")
"""Not taken from the node for a privileged container: it has its own of these."""


def resolve_binds(
    config: ContainerConfig, staging: Path, images: Mapping[int, Path], *, mapped: bool
) -> tuple[BindSource, ...]:
    """The sources of the request's mounts. One that does not exist is created as a directory.

    In a user namespace (`mapped`) the source will be an idmapped clone below `staging` (`stage`). `images` are the
    mountpoints of image volumes, by the mount's index. InvalidArgument names a mount that cannot be made. Blocks
    as long as the filesystems of the sources do: call it in a thread.
    """
    binds: list[BindSource] = []
    for index, mount in enumerate(config.mounts):
        field = f"config.mounts[{index}]"
        if mount.image:
            binds.append(_image_volume(field, mount, images[index]))
            continue
        # Mounts in a mount namespace of another user namespace become slaves: none gets out (mount_namespaces(7)).
        if mapped and mount.propagation is Propagation.BIDIRECTIONAL:
            raise InvalidArgument(f"{field}.propagation", "PROPAGATION_BIDIRECTIONAL needs a privileged pod")
        source = _existing_source(f"{field}.host_path", Path(mount.host_path))
        check_propagation(field, source, mount.propagation)
        binds.append(
            BindSource(
                source=staging / str(index) if mapped or _shows_proc(mount) else source,
                container_path=mount.container_path,
                readonly=mount.readonly,
                recursive_readonly=mount.recursive_readonly,
                propagation=mount.propagation.value,
                restrictions=mounts.restrictions(source),
            )
        )
    return tuple(binds)


def _existing_source(field: str, path: Path) -> Path:
    """The path without symlinks, of a directory that is created if it does not exist.

    A link of /proc is followed by its text, as CRI-O and containerd do: /proc/PID/root is the node's root.
    """
    try:
        if path.exists():
            return path.resolve(strict=True)
    except OSError as error:
        raise InvalidArgument(field, f"{path} cannot be used: {error.strerror}") from error
    try:
        # A hostPath volume without a type: CRI-O and containerd create it, and Helm charts rely on it.
        path.mkdir(mode=0o755, parents=True)
    except OSError as error:  # for a dangling symlink too
        problem = f"{path} does not exist on the node and cannot be created: {error.strerror}"
        raise InvalidArgument(field, problem) from error
    return path.resolve()


def needs_staging(config: ContainerConfig) -> bool:
    """Whether a mount must be staged although no IDs are mapped."""
    return any(_shows_proc(mount) for mount in config.mounts)


def _shows_proc(mount: Mount) -> bool:
    """Whether the source contains /proc, which the OCI runtime would resolve to another one than the node's.

    It runs with the /proc of the CT's PID namespace, which no container may see (decision 0064).
    """
    if mount.image or mount.propagation is Propagation.BIDIRECTIONAL:
        return False
    source = Path(mount.host_path).resolve()
    return source == Path("/") or source.is_relative_to("/proc")


def check_sources(config: ContainerConfig) -> None:
    """InvalidArgument for a mount whose source does not exist."""
    for index, mount in enumerate(config.mounts):
        if not mount.image and not Path(mount.host_path).exists():
            raise InvalidArgument(
                f"config.mounts[{index}].host_path", f"{mount.host_path} does not exist on the node"
            )


def source_owners(config: ContainerConfig) -> set[int]:
    """The uids and gids that own the sources of the request's mounts; not those of the files below them."""
    owners: set[int] = set()
    for mount in config.mounts:
        if not mount.image:
            with suppress(OSError):
                status = Path(mount.host_path).stat()
                owners |= {status.st_uid, status.st_gid}
    return owners


def _image_volume(field: str, mount: Mount, rootfs: Path) -> BindSource:
    try:
        fd = open_in_root(rootfs, mount.image_sub_path or "/", os.O_PATH)
    except OSError as error:
        problem = f"{mount.image_sub_path!r} is not in the image {mount.image}: {error.strerror}"
        raise InvalidArgument(f"{field}.image_sub_path", f"{IMAGE_VOLUME_FAILED}: {problem}") from error
    try:
        # Resolved inside of the image: a symlink in it must not lead to a path of the node.
        source = Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)
    return BindSource(
        source=source,
        container_path=mount.container_path,
        readonly=True,
        recursive_readonly=False,
        propagation=Propagation.PRIVATE.value,
        restrictions=mounts.restrictions(source),
    )


def check_propagation(field: str, source: Path, wanted: Propagation) -> None:
    """InvalidArgument unless the mount of `source` is shared; a slave is enough for HOST_TO_CONTAINER."""
    if wanted is Propagation.PRIVATE:
        return
    containing = [entry for entry in mounts.mounts() if source.is_relative_to(entry.mountpoint)]
    # Of mounts stacked on one mountpoint the last one is visible.
    entry = max(enumerate(containing), key=lambda item: (len(item[1].mountpoint.parts), item[0]))[1]
    if entry.peer_group or (wanted is Propagation.HOST_TO_CONTAINER and entry.master):
        return
    raise InvalidArgument(
        f"{field}.propagation",
        f"{source} is on the mount {entry.mountpoint}, which is not shared (mount --make-rshared)",
    )


def added(staging: Path, index: int) -> Path:
    """The mountpoint of the clone of an added source, by its index."""
    return staging / f"added-{index}"


def stage(container: Container, staging: Path, userns: Path | None) -> None:
    """Mount an idmapped clone of each source below `staging`: files have the same owner IDs in the pod as outside.

    Without a user namespace only sources that the OCI runtime cannot resolve itself are staged (`needs_staging`).

    FailedPrecondition for a source on a filesystem that cannot be idmapped, if the owners of its files matter
    (volume_owners.py). A mount below a source that cannot be idmapped is cloned without: its files appear as
    nobody's in the pod.
    """
    staging.mkdir(exist_ok=True)
    if userns is None:
        for index, mount in enumerate(container.config.mounts):
            if _shows_proc(mount):
                found, target = Path(mount.host_path).resolve(), staging / str(index)
                _create_mountpoint(found, target)
                # By the daemon, whose /proc is the node's; the OCI runtime then binds the clone.
                mounts.bind_clone(found, target, recursive=True)
        return
    userns_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for index, mount in enumerate(container.config.mounts):
            if not mount.image:  # the Image Manager idmaps image volumes
                field = f"config.mounts[{index}].host_path"
                _idmapped(field, Path(mount.host_path).resolve(), staging / str(index), userns_fd)
        for index, source in enumerate(container.added_sources):
            _idmapped("a mount that an NRI plugin added", Path(source).resolve(), added(staging, index), userns_fd)
    finally:
        os.close(userns_fd)


def _idmapped(field: str, source: Path, target: Path, userns_fd: int) -> None:
    _create_mountpoint(source, target)
    for entry in idmapped.bind_tree(source, target, userns_fd):
        if source.is_relative_to(entry.mountpoint) and volume_owners.owners_matter(entry.fstype):
            raise FailedPrecondition(
                f"{field}: {source} is on {entry.mountpoint}, whose filesystem ({entry.fstype}) cannot be "
                "idmapped for the pod's user namespace; put it on one that can be idmapped, or give the pod "
                f"the node's user namespace (annotation {user_namespaces.ANNOTATION}: node)"
            )
        log.info(
            "%s: %s cannot be idmapped; its files appear as nobody's in the pod", entry.mountpoint, entry.fstype
        )


def _create_mountpoint(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()


def unstage(staging: Path) -> None:
    """Undo `stage`. Idempotent."""
    if staging.exists():
        mounts.remove_tree(staging)


# -- devices --------------------------------------------------------------------------------------------------


def resolve_devices(config: ContainerConfig) -> tuple[HostDevice, ...]:
    """The devices of the request, a directory meaning all in it; for a privileged container all of the node's."""
    found: dict[str, HostDevice] = {}
    if config.security.privileged:
        found |= {device.container_path: device for device in _devices_below(Path("/dev"), "/dev", "rwm")}
    for index, wanted in enumerate(config.devices):
        path = Path(wanted.host_path)
        try:
            devices = list(_devices_below(path, wanted.container_path or wanted.host_path, wanted.permissions))
        except OSError as error:
            raise InvalidArgument(f"config.devices[{index}].host_path", f"{path}: {error.strerror}") from error
        if not devices:
            raise InvalidArgument(f"config.devices[{index}].host_path", f"{path} is not a device of the node")
        found |= {device.container_path: device for device in devices}
    return tuple(found.values())


def _devices_below(path: Path, container_path: str, access: str) -> Iterator[HostDevice]:
    """The device at `path`, following symlinks; if `path` is a directory, all devices in it."""
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            if str(entry) not in _PER_CONTAINER and not entry.is_symlink():  # /dev/fd and others lead elsewhere
                yield from _devices_below(entry, f"{container_path}/{entry.name}", access)
        return
    try:
        status = path.stat()
    except OSError:
        return
    kinds = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        yield HostDevice(
            container_path=container_path,
            kind=kind,
            major=os.major(status.st_rdev),
            minor=os.minor(status.st_rdev),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            access=access,
        )
