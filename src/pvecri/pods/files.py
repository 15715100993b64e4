# SPDX-License-Identifier: Apache-2.0
"""Files, pinned namespaces and sysctls that the containers of a pod share."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvecri.linux import mounts, namespaces
from pvecri.linux.programs import Ended
from pvecri.model import IdMapping, NamespaceMode, Sandbox
from pvecri.network import files as contents
from pvecri.oci.spec_linux import SHARED_PID
from pvecri.pods.registry import PodEntry

SHM_SIZE = 64 << 20  # as in CRI-O and containerd
FILES_ROOM = 1 << 20
"""Bytes that a pod may add to its /etc/hosts, /etc/hostname and /etc/resolv.conf together."""
FILES_INODES = 32
_RESTRICTED = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
PING_GROUP_RANGE = "net.ipv4.ping_group_range"
GID_MAX = 0x7FFF_FFFF
"""The largest value that net.ipv4.ping_group_range accepts."""
OF_POD = ("net", "ipc", "uts", "user")
PINNED = ("pid", *OF_POD, SHARED_PID)
"""The namespaces that are pinned by bind mounts: a path of /proc/PID/ns would follow a reuse of the PID.

`pid` is the CT's, for conmon and the OCI runtime. The containers share those of OF_POD, and some SHARED_PID.
"""


def hostname(sandbox: Sandbox) -> str:
    """The pod's hostname: the node's in the node's network, else the request's, else the start of the id."""
    if sandbox.config.security.namespaces.network is NamespaceMode.NODE:
        return socket.gethostname()
    return sandbox.config.hostname or sandbox.id[:12]


def make_private_directory(directory: Path, root_gid: int) -> None:
    """Make a directory that only root and, by its group, the root user of a pod can search (decision 0053).

    Below are secrets (an OCI spec's environment) and clones of volumes, which the node's users must not reach.
    """
    # Closed until the group is right: nobody of another group can open it meanwhile.
    directory.mkdir(mode=0o700)
    os.chown(directory, 0, root_gid)
    directory.chmod(0o710)


def make_directory(pod: PodEntry) -> None:
    """Make the pod's directory, and pin the PID namespace of its CT there, which runs.

    For conmon and the OCI runtime, which run in that namespace in every kind of pod (decision 0064).
    """
    assert pod.init is not None
    make_private_directory(pod.directory, pod.value.root_uid)
    pod.namespace("net").parent.mkdir()
    pin_namespaces(pod, pod.init.pid, ["pid"])


def take_directory(pod: PodEntry) -> None:
    """As `make_directory`, for a pod with a claimed CT: the directory was made for the CT. Idempotent."""
    os.chown(pod.directory, 0, pod.value.root_uid)


def pin_namespaces(pod: PodEntry, pid: int, kinds: Sequence[str]) -> None:
    """Pin namespaces of process `pid` below the pod's directory."""
    for kind in kinds:
        namespaces.pin(Path(f"/proc/{pid}/ns/{kind}"), pod.namespace(kind))


def unpin_namespaces(pod: PodEntry) -> None:
    """Undo every `pin_namespaces`. Idempotent."""
    for kind in PINNED:
        namespaces.unpin(pod.namespace(kind))


def set_hostname(pod: PodEntry) -> None:
    """Set the hostname in the pod's UTS namespace: Proxmox's option accepts fewer names than Kubernetes."""
    if pod.value.config.security.namespaces.network is NamespaceMode.NODE:
        return
    name = hostname(pod.value)
    # A thread may join a UTS namespace; user namespaces need a process (sysctl_command).
    namespaces.run_inside([pod.namespace("uts")], lambda: socket.sethostname(name))


def set_default_sysctls(pod: PodEntry, sysctls: Mapping[str, str], *, of_interfaces: bool) -> list[str]:
    """Set the default sysctls of the network namespace that the pod does not set itself; returns the failures.

    Those of network interfaces (`sysctls_of`) are for after CNI.

    Unlike `sysctl_command` it starts no process, because it runs for every pod.
    """
    if pod.value.config.security.namespaces.network is NamespaceMode.NODE:
        return []
    wanted = sysctls_of(sysctls, interfaces=of_interfaces)
    values = {key: value for key, value in wanted.items() if key not in pod.value.config.sysctls}
    if PING_GROUP_RANGE in values:
        values[PING_GROUP_RANGE] = host_ping_groups(values[PING_GROUP_RANGE], pod.value.mappings)
    return namespaces.run_inside([pod.namespace("net")], lambda: _write_sysctls(values))


def _write_sysctls(values: Mapping[str, str]) -> list[str]:
    failures = []
    for key, value in values.items():
        try:
            sysctl_file(key).write_text(value)
        except OSError as error:
            # Returned, not raised: the pod did not request these, and a kernel may lack one.
            failures.append(f"{key} = {value}: {error.strerror}")
    return failures


def host_ping_groups(wanted: str, mappings: Sequence[IdMapping]) -> str:
    """`net.ipv4.ping_group_range` in host IDs, for the range `wanted` of group IDs inside the pod.

    The kernel interprets the two numbers in the writer's user namespace, here the node's. It accepts none above
    2147483647: pods whose host IDs are larger get `1 0`, the kernel's default, which allows no group.
    """
    if not mappings:
        return wanted
    first, last = (int(number) for number in wanted.split())
    inside = mappings[0]
    low = inside.host_id + max(0, first - inside.container_id)
    high = inside.host_id + min(inside.length - 1, last - inside.container_id)
    return f"{low} {high}" if low <= high <= GID_MAX else "1 0"


def sysctl_file(key: str) -> Path:
    """The file of a sysctl in /proc/sys; components are separated by dots or by slashes.

    If the first separator is a slash, dots are part of the components (`net/ipv4/conf/eth0.100/forwarding`), as in
    sysctl(8).
    """
    separator = "/" if re.match(r"[^./]*/", key) else "."
    return Path("/proc/sys", *key.split(separator))


def sysctls_of(sysctls: Mapping[str, str], *, interfaces: bool) -> dict[str, str]:
    """Those that exist only with a network interface, such as `net.ipv4.conf.eth0.forwarding`, or all others."""
    return {key: value for key, value in sysctls.items() if _is_of_interface(sysctl_file(key)) is interfaces}


def _is_of_interface(file: Path) -> bool:
    match file.parts[3:]:
        case ("net", _, "conf" | "neigh", name, *_):
            return name not in ("all", "default", "lo")
    return False


def sysctl_command(pod: PodEntry, sysctls: Mapping[str, str]) -> list[str]:
    """A command that writes sysctls inside the pod's namespaces, as root of its user namespace.

    If the kernel refuses one, its name is on stdout and the kernel's error on stderr (`refused_sysctl`).

    The kernel resolves net, ipc and uts sysctls by the namespaces of the opening process, and allows writing only
    to root of the owning user namespace. It is a process because a thread cannot enter a user namespace
    (setns(2)).
    """
    kinds = [*_own_namespaces(pod.value), *(["user"] if pod.value.mappings else [])]
    command = ["nsenter", *(f"--{kind}={pod.namespace(kind)}" for kind in kinds), "--"]
    command += ["/bin/sh", "-c", _WRITE_SYSCTLS, "sh"]
    for key, value in sysctls.items():
        command += [key, str(sysctl_file(key)), value]
    return command


# tee has the error of write(2) in its message; the shell's own printf has "I/O error" for all of them.
_WRITE_SYSCTLS = (
    'while [ $# -gt 0 ]; do printf %s "$3" | tee -- "$2" >/dev/null || { printf %s "$1"; exit 1; }; shift 3; done'
)


def refused_sysctl(ended: Ended) -> tuple[str, str]:
    """The name of the sysctl at which a `sysctl_command` failed, if it is known, and the kernel's error."""
    return ended.stdout.decode(errors="replace"), ended.stderr.strip().rpartition(": ")[2]


def _own_namespaces(sandbox: Sandbox) -> list[str]:
    """The pod's own namespaces that have sysctls, by nsenter's names."""
    options = sandbox.config.security.namespaces
    own = ["ipc"] if options.ipc is not NamespaceMode.NODE else []
    return own + (["net", "uts"] if options.network is not NamespaceMode.NODE else [])


def write_files(pod: PodEntry) -> None:
    """Write the pod's files and mount its /dev/shm, owned by root of the pod's user namespace.

    The files have a filesystem of their own, with FILES_ROOM: the pod may write to them, and the run directory is
    on the node's /run, which is everyone's.
    """
    sandbox = pod.value
    owner = sandbox.root_uid
    pod.files.mkdir()
    name = hostname(sandbox)
    host_network = sandbox.config.security.namespaces.network is NamespaceMode.NODE
    texts = {
        "hosts": _read(Path("/etc/hosts")) if host_network else contents.hosts(sandbox.ips, name),
        "hostname": contents.hostname_file(name),
        "resolv.conf": contents.resolv_conf(sandbox.config.dns, _read(Path("/etc/resolv.conf"))),
    }
    size = FILES_ROOM + sum(len(text.encode()) for text in texts.values())
    # Extended attributes of users take from the same room as inodes (tmpfs(5)).
    mounts.mount("pod-files", pod.files, "tmpfs", _RESTRICTED, f"mode=755,size={size},nr_inodes={FILES_INODES}")
    for file, text in texts.items():
        path = pod.files / file
        path.write_text(text)
        path.chmod(0o644)  # regardless of the daemon's umask
        os.chown(path, owner, owner)
    shm = pod.files / "shm"
    shm.mkdir()
    mounts.mount("shm", shm, "tmpfs", _RESTRICTED, f"mode=1777,size={SHM_SIZE},uid={owner},gid={owner}")


def _read(path: Path) -> str:
    """A file of the node; empty if it does not exist."""
    return path.read_text() if path.exists() else ""


def remove_files(pod: PodEntry) -> None:
    """Undo `write_files`, `pin_namespaces` and `make_directory`, and remove the pod's directory. Idempotent."""
    # Pins are mounts, and a tree is removed only if nothing is mounted in it (decision 0053).
    unpin_namespaces(pod)
    mounts.remove_tree(pod.directory)
