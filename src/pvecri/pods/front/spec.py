# SPDX-License-Identifier: Apache-2.0
"""A front's OCI runtime spec, as it runs below a CT: its root, cgroup, namespaces and limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvecri.errors import InvalidArgument
from pvecri.linux import namespaces, processes
from pvecri.pods.front.wanted import WantedContainer
from pvecri.pods.registry import ContainerEntry, PodEntry

_PROC_NAMESPACE = re.compile(r"/proc/(\d+)/ns/(\w+)")


def fitted(pod: PodEntry, container: ContainerEntry, wanted: WantedContainer) -> tuple[bool, dict[str, Any]]:
    """The spec as it runs in the CT, and whether the container's PID namespace nests in the CT's. Blocks.

    InvalidArgument for a namespace that is not there.
    """
    root = {**wanted.spec["root"], "path": str(wanted.bundle / str(wanted.spec["root"].get("path") or ""))}
    linux = dict(wanted.spec.get("linux") or {})
    try:
        nested, joined = _namespaces(pod, container, linux.get("namespaces") or ())
    except OSError as error:
        raise InvalidArgument("linux.namespaces", f"{error.filename}: {error.strerror}") from error
    linux |= {"cgroupsPath": pod.cgroups.container(container.id), "namespaces": joined}
    if isinstance(linux.get("resources"), dict):
        linux["resources"] = below_ct(linux["resources"])
    return nested, {**wanted.spec, "root": root, "linux": linux}


def _namespaces(
    pod: PodEntry, container: ContainerEntry, wanted: Sequence[dict[str, Any]]
) -> tuple[bool, list[dict[str, Any]]]:
    """The namespaces of the spec, and whether a PID namespace that nests in the CT's is among them.

    Fronts name namespaces by their containers' PIDs on the node, which in a PID namespace are others.
    """
    pids = next((each for each in wanted if each.get("type") == "pid"), None)
    path = str((pids or {}).get("path") or "")
    target = _container_at(pod, path)
    nested = pids is not None and (not path or (target is not None and _level_1(target) is not None))
    return nested, [_namespace(pod, container, each, nested=nested) for each in wanted]


def _namespace(
    pod: PodEntry, container: ContainerEntry, wanted: dict[str, Any], *, nested: bool
) -> dict[str, Any]:
    path = str(wanted.get("path") or "")
    matched = _PROC_NAMESPACE.fullmatch(path)
    if matched is None:
        return wanted
    kind = matched[2].removesuffix("_for_children")
    target = _container_at(pod, path)
    if target is not None and target.process is not None:
        number = _level_1(target) if nested else target.process.pid
        if number is not None:
            return {**wanted, "path": f"/proc/{number}/ns/{kind}"}
    if not nested:
        return wanted
    # Another pod's, or the node's. bundle.remove_bundle undoes it.
    pinned = container.bundle.directory / "ns" / kind
    pinned.parent.mkdir(mode=0o700, exist_ok=True)
    namespaces.pin(Path(path), pinned)
    return {**wanted, "path": str(pinned)}


def _container_at(pod: PodEntry, path: str) -> ContainerEntry | None:
    """The container of the pod whose monitor has the PID of a path in /proc."""
    matched = _PROC_NAMESPACE.fullmatch(path)
    monitor = int(matched[1]) if matched is not None else 0
    found = (each for each in pod.containers.values() if each.monitor is not None)
    return next((each for each in found if each.monitor and each.monitor.pid == monitor), None)


def _level_1(container: ContainerEntry) -> int | None:
    """The PID of a container's first process in the CT's PID namespace; None if it is not in there."""
    if container.process is None:
        return None
    numbers = processes.status(container.process.pid).get("NSpid", "").split()
    return int(numbers[1]) if len(numbers) > 1 else None


def below_ct(resources: dict[str, Any]) -> dict[str, Any]:
    """LinuxResources of the OCI runtime spec as a cgroup below the CT's can have them."""
    changed = dict(resources)
    pids = resources.get("pids")
    if isinstance(pids, dict) and isinstance(pids.get("limit"), int) and pids["limit"] > 0:
        # The monitor is in the container's cgroup, where the front looks for what it knows by its PID.
        changed["pids"] = {**pids, "limit": pids["limit"] + 1}
    if isinstance(resources.get("devices"), list):
        changed["devices"] = [rule for each in resources["devices"] for rule in device_rules(each)]
    return changed


def device_rules(rule: dict[str, Any]) -> list[dict[str, Any]]:
    """A rule that allows every device, as one for each kind: version 1 allows `a` only where the parent has it."""
    every = rule.get("type") in (None, "", "a") and not any(rule.get(each) for each in ("major", "minor"))
    if not (every and rule.get("allow")):
        return [rule]
    return [{"allow": True, "type": kind, "access": rule.get("access") or "rwm"} for kind in "cb"]
