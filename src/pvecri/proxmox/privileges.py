# SPDX-License-Identifier: Apache-2.0
"""The privileges that pvecri's account needs; docs/proxmox-setup.md explains each and how to grant it."""

from __future__ import annotations

from collections.abc import Mapping

from pvecri.config.settings import ProxmoxConfig

POD_PRIVILEGES = frozenset(
    {
        "VM.Allocate",
        "VM.Audit",
        "VM.Config.CPU",
        "VM.Config.Disk",
        "VM.Config.Memory",
        "VM.Config.Network",
        "VM.Config.Options",
        "VM.PowerMgmt",
    }
)


def pods_path(config: ProxmoxConfig) -> str:
    """The ACL path on which the account has its rights on pods' CTs."""
    return f"/pool/{config.pool}" if config.pool else "/vms"


def needed(config: ProxmoxConfig, node: str, image_storage: str = "") -> dict[str, frozenset[str]]:
    """The minimum of privileges, by ACL path.

    With proxmox.pool those for pods are needed on the pool only, so that the account cannot change other guests.
    `image_storage` is images.template_storage.
    """
    wanted: dict[str, frozenset[str]] = {
        pods_path(config): POD_PRIVILEGES,
        f"/nodes/{node}": frozenset({"Sys.Audit"}),
        f"/storage/{config.storage}": frozenset({"Datastore.AllocateSpace"}),
    }
    templates = f"/storage/{config.template_storage}"
    wanted[templates] = wanted.get(templates, frozenset()) | {"Datastore.AllocateTemplate", "Datastore.Audit"}
    if image_storage:
        # oci-registry-pull makes the node connect to a server that the caller names.
        wanted[f"/nodes/{node}"] |= {"Sys.AccessNetwork"}
        images = f"/storage/{image_storage}"
        wanted[images] = wanted.get(images, frozenset()) | {
            "Datastore.Allocate",
            "Datastore.AllocateTemplate",
            "Datastore.Audit",
        }
    if not config.unprivileged:
        wanted["/"] = frozenset({"Sys.Modify"})  # Proxmox requires it to create a privileged CT
    return wanted


def effective(path: str, granted: Mapping[str, Mapping[str, bool]]) -> frozenset[str]:
    """The privileges on `path` in a response of GET /access/permissions. Pure.

    The response maps ACL paths to privileges and whether they propagate; a path that it lacks inherits those that
    propagate from the nearest ancestor.
    """
    if path in granted:
        return frozenset(granted[path])
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if path in granted:
            return frozenset(name for name, propagates in granted[path].items() if propagates)
    return frozenset()


def missing(wanted: Mapping[str, frozenset[str]], granted: Mapping[str, frozenset[str]]) -> list[str]:
    """The privileges that are wanted and not granted, as `path: privilege, …`, sorted."""
    lacks = {path: sorted(privileges - granted.get(path, frozenset())) for path, privileges in wanted.items()}
    return [f"{path}: {', '.join(names)}" for path, names in sorted(lacks.items()) if names]
