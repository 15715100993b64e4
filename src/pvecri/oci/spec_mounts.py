# SPDX-License-Identifier: Apache-2.0
"""The `mounts` of an OCI spec: kernel filesystems, then the mounts of the pod and of the request."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from pvecri.model import NamespaceMode
from pvecri.oci.plan import BindSource, Plan
from pvecri.oci.runtime_spec import Mount

HOST_SHM = "/dev/shm"


def mounts(plan: Plan) -> tuple[Mount, ...]:
    """All mounts: kernel filesystems first, then those of the pod and of the request, parents first.

    One of the request replaces another at its destination. A volume at /etc has the pod's hosts and resolv.conf
    in it, and the node's /dev the pod's /dev/shm, as with CRI-O and containerd.
    """
    requested = [bind_mount(bind) for bind in plan.binds]
    taken = {mount.destination for mount in requested}
    kernel = [mount for mount in kernel_mounts(plan) if not _is_hidden(mount, taken)]
    ours = [mount for mount in (*pod_mounts(plan), *device_mounts(plan)) if mount.destination not in taken]
    # A parent that is mounted later would hide its children.
    return (*kernel, *sorted((*ours, *requested), key=lambda mount: len(PurePosixPath(mount.destination).parts)))


def _is_hidden(mount: Mount, places: Collection[str]) -> bool:
    """Whether a mount is at one of the places, or below one: the node's /dev has the node's /dev/pts."""
    place = PurePosixPath(mount.destination)
    return any(str(each) in places for each in (place, *place.parents[:-1]))


def kernel_mounts(plan: Plan) -> list[Mount]:
    """proc, dev and sys; sysfs and cgroup are writable in a privileged container."""
    # The options are those of `runc spec`, but for /proc and the mode of devpts.
    writable = "rw" if plan.privileged else "ro"
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0622",  # others may write: /dev/stdout is a terminal for any user of the container
            "gid=5",
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", writable),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", writable),
    ]


def pod_mounts(plan: Plan) -> list[Mount]:
    """The files that the pod's containers share: hosts, hostname, resolv.conf and /dev/shm."""
    access = ("ro", *plan.pod_files_restrictions) if plan.config.security.readonly_rootfs else ("rw",)
    files = [
        _mount(f"/etc/{name}", "bind", str(plan.pod_files / name), "rbind", "rprivate", *access)
        for name in ("hosts", "hostname", "resolv.conf")
    ]
    # Not a tmpfs of each container: containers of a pod share memory by /dev/shm as they share the IPC namespace.
    host_ipc = plan.sandbox.security.namespaces.ipc is NamespaceMode.NODE
    shm = HOST_SHM if host_ipc else str(plan.pod_files / "shm")
    return [*files, _mount("/dev/shm", "bind", shm, "rbind", "rprivate", "rw", "nosuid", "nodev", "noexec")]


def device_mounts(plan: Plan) -> list[Mount]:
    """Bind mounts of devices for a container in a user namespace, where mknod(2) fails."""
    if not plan.mappings:
        return []
    return [
        _mount(device.container_path, "bind", str(plan.device_nodes / str(index)), "bind", "rprivate", "rw")
        for index, device in enumerate(plan.devices)
    ]


def bind_mount(bind: BindSource) -> Mount:
    """A mount of the request."""
    # `ro` covers the top mount only, `rro` those below it as well (runtime-spec, config.md, mounts).
    access = "rro" if bind.recursive_readonly else "ro" if bind.readonly else "rw"
    options = ("rbind", bind.propagation, access, *(bind.restrictions if bind.readonly else ()))
    return _mount(_normal(bind.container_path), "bind", str(bind.source), *options)


def _mount(destination: str, kind: str, source: str, *options: str) -> Mount:
    return Mount(destination=destination, type=kind, source=source, options=options)


def _normal(path: str) -> str:
    return str(PurePosixPath("/") / path)
