# SPDX-License-Identifier: Apache-2.0
"""What the containers of a pod share: /etc/hosts, /etc/hostname, /etc/resolv.conf, /dev/shm, pinned namespaces."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvecri.linux import mounts, namespaces
from pvecri.model import IdMapping, NamespaceMode, Sandbox
from pvecri.network import files as contents
from pvecri.oci.spec_linux import SHARED_PID
from pvecri.pods.registry import PodEntry

SHM_SIZE = 64 << 20
PING_GROUP_RANGE = "net.ipv4.ping_group_range"
GID_MAX = 0x7FFF_FFFF
"""The largest that net.ipv4.ping_group_range takes."""
OF_POD = ("net", "ipc", "uts", "user")
PINNED = ("pid", *OF_POD, SHARED_PID)
"""The namespaces that are given a path: they stay reachable, and cannot come to mean another process's.

`pid` is the CT's, for conmon and the OCI runtime; the containers share the next four, and some the last.
"""


def hostname(sandbox: Sandbox) -> str:
    """The pod's hostname: the node's when it uses the node's network, else as asked, else from the id."""
    if sandbox.config.security.namespaces.network is NamespaceMode.NODE:
        return socket.gethostname()
    return sandbox.config.hostname or sandbox.id[:12]


def make_private_directory(directory: Path, root_gid: int) -> None:
    """A directory that only root and the root of a pod, by its group, may pass through.

    What lies below (secrets in a spec, clones of the node's volumes) is not for the node's other users.
    """
    directory.mkdir(mode=0o700)
    os.chown(directory, 0, root_gid)
    directory.chmod(0o710)


def make_directory(pod: PodEntry) -> None:
    """Make the pod's directory, and in it the one for its namespaces."""
    make_private_directory(pod.directory, pod.value.root_uid)
    pod.namespace("net").parent.mkdir()


def pin_namespaces(pod: PodEntry, pid: int, kinds: Sequence[str]) -> None:
    """Give namespaces of process `pid` paths below the pod's directory."""
    for kind in kinds:
        namespaces.pin(Path(f"/proc/{pid}/ns/{kind}"), pod.namespace(kind))


def unpin_namespaces(pod: PodEntry) -> None:
    """Undo every `pin_namespaces`. Idempotent."""
    for kind in PINNED:
        namespaces.unpin(pod.namespace(kind))


def set_hostname(pod: PodEntry) -> None:
    """Give the pod its hostname where Proxmox could not: it takes fewer names than Kubernetes has."""
    if pod.value.config.security.namespaces.network is NamespaceMode.NODE:
        return
    name = hostname(pod.value)
    namespaces.run_inside([pod.namespace("uts")], lambda: socket.sethostname(name))


def set_default_sysctls(pod: PodEntry, sysctls: Mapping[str, str]) -> list[str]:
    """Set the default sysctls of the network namespace; what could not be set, a sentence each.

    Unlike `sysctl_command` this starts no program: every pod pays for it.
    """
    if pod.value.config.security.namespaces.network is NamespaceMode.NODE:
        return []
    values = {key: value for key, value in sysctls.items() if key not in pod.value.config.sysctls}
    if PING_GROUP_RANGE in values:
        values[PING_GROUP_RANGE] = host_ping_groups(values[PING_GROUP_RANGE], pod.value.mappings)
    return namespaces.run_inside([pod.namespace("net")], lambda: _write_sysctls(values))


def _write_sysctls(values: Mapping[str, str]) -> list[str]:
    failures = []
    for key, value in values.items():
        try:
            sysctl_file(key).write_text(value)
        except OSError as error:
            failures.append(f"{key} = {value}: {error.strerror}")
    return failures


def host_ping_groups(wanted: str, mappings: Sequence[IdMapping]) -> str:
    """`net.ipv4.ping_group_range` as the node writes it, for the groups that a pod knows by the range `wanted`.

    The kernel reads the two numbers in the writer's user namespace, so they become the pod's groups of the node.
    It takes none above 2147483647: pods with groups beyond keep the kernel's default, which lets nobody.
    """
    if not mappings:
        return wanted
    first, last = (int(number) for number in wanted.split())
    inside = mappings[0]
    low = inside.host_id + max(0, first - inside.container_id)
    high = inside.host_id + min(inside.length - 1, last - inside.container_id)
    return f"{low} {high}" if low <= high <= GID_MAX else "1 0"


def sysctl_file(key: str) -> Path:
    """Where a sysctl is in /proc/sys: the components of its name are parted by dots or by slashes.

    If the first separator is a slash, dots belong to the components (`net/ipv4/conf/eth0.100/forwarding`), as
    sysctl(8) has it.
    """
    separator = "/" if re.match(r"[^./]*/", key) else "."
    return Path("/proc/sys", *key.split(separator))


def sysctl_command(pod: PodEntry) -> list[str]:
    """A command that writes the pod's sysctls inside its namespaces, as the root that owns them there.

    The kernel resolves net, ipc and uts sysctls by the namespaces of the process that opens them, and lets only
    their user namespace's root write. So it is a process of its own: a thread cannot enter a user namespace.
    """
    kinds = [*_own_namespaces(pod.value), *(["user"] if pod.value.mappings else [])]
    command = ["nsenter", *(f"--{kind}={pod.namespace(kind)}" for kind in kinds), "--"]
    command += ["/bin/sh", "-ec", 'while [ $# -gt 0 ]; do printf %s "$2" >"$1"; shift 2; done', "sh"]
    for key, value in pod.value.config.sysctls.items():
        command += [str(sysctl_file(key)), value]
    return command


def _own_namespaces(sandbox: Sandbox) -> list[str]:
    """The namespaces that sysctls can be set in, by nsenter's names for them."""
    options = sandbox.config.security.namespaces
    own = ["ipc"] if options.ipc is not NamespaceMode.NODE else []
    return own + (["net", "uts"] if options.network is not NamespaceMode.NODE else [])


def write_files(pod: PodEntry) -> None:
    """Write the pod's files and mount its /dev/shm, owned by root as the pod knows it."""
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
    for file, text in texts.items():
        path = pod.files / file
        path.write_text(text)
        path.chmod(0o644)
        os.chown(path, owner, owner)
    shm = pod.files / "shm"
    shm.mkdir(exist_ok=True)
    options = f"mode=1777,size={SHM_SIZE},uid={owner},gid={owner}"
    mounts.mount("shm", shm, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC, options)


def _read(path: Path) -> str:
    """A file of the node that a pod takes over as it is; empty when the node has none."""
    return path.read_text() if path.exists() else ""


def remove_files(pod: PodEntry) -> None:
    """Undo `write_files`, `pin_namespaces` and `make_directory`, and remove the pod's directory. Idempotent."""
    unpin_namespaces(pod)
    mounts.remove_tree(pod.directory)
