# SPDX-License-Identifier: Apache-2.0
"""Limits of the kernel that all pods of a node share (docs/user-namespaces.md), for their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config

SUBJECT = "limits"

DEFAULT_PODS = 110
"""A kubelet's maxPods."""

FORWARDING = "net.ipv4.ip_forward"
NAMESPACES = "user.max_user_namespaces"

PER_POD = {
    # LXC's keyring of each CT; some are for other CTs of Proxmox's ID range.
    "kernel.keys.maxkeys": 1.3,
    # A systemd in a pod, a log shipper or a controller has several.
    "fs.inotify.max_user_instances": 8,
    "fs.inotify.max_user_watches": 512,
    # Three containers with their monitors, and threads: a node's default of 32768 is enough for 128.
    "kernel.pid_max": 256,
    # The CT's, that of its idmapped mounts, and those that its programs make for themselves.
    NAMESPACES: 4,
}
"""The least of each sysctl for one pod: an estimate for common pods."""


@dataclass(frozen=True)
class Sysctl:
    """A sysctl whose value is less than what is needed."""

    name: str
    value: int
    needed: int


def check(config: Config, pods: int = DEFAULT_PODS, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """The limits for `pods` pods."""
    for each in lacking(pods, proc):
        if each.name == FORWARDING:
            message = f"{FORWARDING} is 0: pods reach no other network"
        else:
            message = f"{each.name} is {each.value}, which is little for {pods} pods"
        level: Literal["problem", "warning"] = "warning"
        if each.name == NAMESPACES and not each.value:
            level, message = "problem", f"{NAMESPACES} is 0: no unprivileged CT can start"
        yield Finding(level, SUBJECT, message, f"`pvecri setup` sets it to {each.needed}")
    vmids = config.proxmox.vmid_range.size
    if vmids < pods:
        message = f"proxmox.vmid_range has {vmids} VMIDs for up to {pods} pods"
        yield Finding("warning", SUBJECT, message, "enlarge it, or lower the kubelet's maxPods")


def lacking(pods: int, proc: Path = Path("/proc")) -> list[Sysctl]:
    """The sysctls that are too low for `pods` pods; one that the kernel does not have is not."""
    needs = {**{name: round(each * pods) for name, each in PER_POD.items()}, FORWARDING: 1}
    found = {name: value(name, proc) for name in needs}
    return [
        Sysctl(name, current, needs[name])
        for name, current in found.items()
        if current is not None and current < needs[name]
    ]


def value(name: str, proc: Path) -> int | None:
    """The value of a sysctl; None if there is none, or it is no number."""
    try:
        return int((proc / "sys" / name.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return None
