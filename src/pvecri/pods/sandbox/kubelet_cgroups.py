# SPDX-License-Identifier: Apache-2.0
"""Mirrors the limits of a kubelet's pod cgroup to the pod's CT.

A kubelet creates a cgroup for each pod (`kubepods/burstable/podUID`) and passes it in `cgroup_parent`. Other
runtimes run the pod below it. Here the pod runs in its CT's cgroup, `lxc/VMID`, whose path Proxmox decides, so the
kubelet's cgroup stays empty. docs/kubelet.md lists what is mirrored and what cannot be.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import PurePosixPath

from msgspec.structs import replace

from pvecri.config.settings import VmidRange
from pvecri.linux import limits
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.limits import Limits
from pvecri.model import Resources, SandboxConfig
from pvecri.pods.registry import PodEntry

log = logging.getLogger(__name__)

ALL_CTS = "/lxc"
"""The cgroup in which Proxmox runs every CT of the node."""

ALL_PODS = "kubepods"
"""The kubelet's cgroup for all pods, whose limits are the node's allocatable resources."""


class KubeletCgroups:
    """Reads the kubelet's cgroups and writes to those of CTs. Its calls take well below a millisecond."""

    def __init__(self, cgroups: Cgroups, vmids: VmidRange, *, enforce_node_allocatable: bool) -> None:
        """`vmids` are those of pods. `enforce_node_allocatable` bounds all CTs as the kubelet bounds all pods."""
        self._cgroups = cgroups
        self._vmids = vmids
        self._enforce_node_allocatable = enforce_node_allocatable

    def pod_limits(self, config: SandboxConfig) -> Limits | None:
        """The limits of the pod's cgroup; None if the client is no kubelet or has no cgroups for pods."""
        group = pod_cgroup(config)
        return limits.read(self._cgroups, group) if group else None

    def node_allocatable(self, config: SandboxConfig) -> Limits:
        """The limits of the kubelet's cgroup for all pods; none at all if it has no such cgroup."""
        group = all_pods_cgroup(pod_cgroup(config))
        found = limits.read(self._cgroups, group) if group else None
        return found or Limits()

    def swap(self, config: SandboxConfig, total: int) -> int | None:
        """The swap that a kubelet's pod may use out of `total`, in bytes; None if the client is no kubelet.

        A kubelet limits the swap of each container; LinuxPodSandboxConfig.resources does not have it.
        """
        found = self.pod_limits(config)
        if found is None:
            return None
        return total if found.swap is None else min(total, found.swap)

    def mirror(self, pod: PodEntry) -> None:
        """Write the limits that Proxmox has no option for to the cgroup of the pod's CT, which runs. Idempotent.

        If the kernel refuses one, that is logged: a kubelet too continues if its cgroup refuses a limit.
        """
        self.mirror_own(pod)
        self.bound_all([pod.value.config])

    def mirror_own(self, pod: PodEntry) -> None:
        """As `mirror`, without those of all CTs together (`bound_all`): for many pods at once."""
        wanted = self.pod_limits(pod.value.config)
        if wanted is None:
            return
        try:
            limits.set_pids(self._cgroups, pod.cgroups.ct, wanted.pids)
            limits.set_memory_protection(self._cgroups, pod.cgroups.ct, wanted.memory_min, wanted.memory_low)
            limits.set_hugepages(self._cgroups, pod.cgroups.ct, wanted.hugepages)
        except OSError as error:
            log.warning("pod %s: cannot set a limit of the kubelet's: %s", pod.value.name, error)

    def bound_all(self, pods: Iterable[SandboxConfig]) -> None:
        """Limit all CTs together as the kubelet of one of these pods limits all pods, if that is configured."""
        if not self._enforce_node_allocatable:
            return
        of_kubelet = next((config for config in pods if self.pod_limits(config) is not None), None)
        if of_kubelet is not None:
            self._bound_all_cts(self.node_allocatable(of_kubelet))

    def _bound_all_cts(self, wanted: Limits) -> None:
        """Limit all CTs together, unless one of them is not a pod: the kubelet's limits are not for that one."""
        if others := self._other_cts():
            log.warning("node allocatable is not enforced: CT %d is not a pod", others[0])
            wanted = Limits()
        try:
            limits.set_memory(self._cgroups, ALL_CTS, wanted.memory)
            limits.set_memory_protection(self._cgroups, ALL_CTS, wanted.memory_min, wanted.memory_low)
            limits.set_pids(self._cgroups, ALL_CTS, wanted.pids)
            limits.set_cpu_weight(self._cgroups, ALL_CTS, wanted.cpu_weight)
        except OSError as error:
            log.warning("node allocatable is not enforced: %s", error)

    def _other_cts(self) -> list[int]:
        """The running CTs that are not pods."""
        running = (int(name) for name in self._cgroups.children(ALL_CTS) if name.isdecimal())
        return sorted(vmid for vmid in running if not self._vmids.first <= vmid <= self._vmids.last)


def pod_cgroup(config: SandboxConfig) -> str:
    """The cgroup that a kubelet created for the pod, from `/`; empty if `cgroup_parent` names none.

    The limits of another client's cgroup are not mirrored: they may be for one pod or for many.
    """
    parent, uid = PurePosixPath(config.cgroup_parent), config.metadata.uid
    # A client's path: it is joined to the cgroup filesystem's and must not lead out of it.
    if not uid or ".." in parent.parts:
        return ""
    by_cgroupfs = parent.name == f"pod{uid}"
    # In the name of a slice a dash is a level (systemd.slice(5)): the kubelet writes the uid's as underscores.
    by_systemd = parent.name.endswith(f"-pod{uid.replace('-', '_')}.slice")
    if not (by_cgroupfs or by_systemd):
        return ""
    return expand_slice(parent.name) if len(parent.parts) == 1 and by_systemd else f"/{str(parent).lstrip('/')}"


def all_pods_cgroup(group: str) -> str:
    """The group above a pod's in which the kubelet has all its pods; empty if there is none."""
    for parent in PurePosixPath(group).parents:
        if parent.name.removesuffix(".slice").rpartition("-")[2] == ALL_PODS:
            return str(parent)
    return ""


def expand_slice(name: str) -> str:
    """The path of a systemd slice: `a-b.slice` is `/a.slice/a-b.slice` (systemd.slice(5))."""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: number + 1])}.slice" for number in range(len(parts)))


def pod_resources(requested: Resources, pod: Limits | None) -> Resources:
    """The limits of a pod as a whole: those `requested` by RunPodSandbox that its cgroup has too.

    A kubelet's LinuxPodSandboxConfig.resources has the sum of the limits of those containers that have one. Its
    pod cgroup has a limit only if all have one: for the pod of a limited container and an unlimited one, the sum
    is no limit. `pod` is None if there is no pod cgroup.
    """
    if pod is None:
        return requested
    return replace(
        requested,
        memory_limit=0 if pod.memory is None else requested.memory_limit,
        cpu_quota=0 if pod.cpu_quota is None else requested.cpu_quota,
    )
