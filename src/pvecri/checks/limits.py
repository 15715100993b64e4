# SPDX-License-Identifier: Apache-2.0
"""Limits of the kernel that all pods of a node share (docs/user-namespaces.md), for their number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config

SUBJECT = "limits"

DEFAULT_PODS = 110
"""A kubelet's maxPods."""

PER_POD = {
    # LXC's keyring of each CT; some are for other CTs of Proxmox's ID range.
    "kernel.keys.maxkeys": 1.3,
    # A systemd in a pod, a log shipper or a controller has several.
    "fs.inotify.max_user_instances": 8,
    "fs.inotify.max_user_watches": 512,
    # Three containers with their monitors, and threads: a node's default of 32768 is enough for 128.
    "kernel.pid_max": 256,
}
"""The least of each sysctl for one pod: an estimate for common pods."""


def check(config: Config, pods: int = DEFAULT_PODS, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """The limits for `pods` pods."""
    for name, each in PER_POD.items():
        value, needed = _sysctl(name, proc), round(each * pods)
        if value is not None and value < needed:
            message = f"{name} is {value}, which is little for {pods} pods"
            yield Finding("warning", SUBJECT, message, f"set it to {needed} or more in /etc/sysctl.d")
    if _sysctl("net.ipv4.ip_forward", proc) == 0:
        message = "net.ipv4.ip_forward is 0: pods reach no other network"
        yield Finding("warning", SUBJECT, message, "set it to 1 in /etc/sysctl.d")
    vmids = config.proxmox.vmid_range.size
    if vmids < pods:
        message = f"proxmox.vmid_range has {vmids} VMIDs for up to {pods} pods"
        yield Finding("warning", SUBJECT, message, "enlarge it, or lower the kubelet's maxPods")


def _sysctl(name: str, proc: Path) -> int | None:
    try:
        return int((proc / "sys" / name.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return None
