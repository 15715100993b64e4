# SPDX-License-Identifier: Apache-2.0
"""Whether the storage of pods' root disks can hold them is part of the runtime's status."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.scripted_pve import Step, data, refusal, scripted_pve

from pvecri.pods.health import ProxmoxHealth
from pvecri.proxmox.api import ProxmoxApi


@pytest.mark.parametrize(
    ("kind", "content", "size", "templates", "reason"),
    [
        ("dir", "rootdir,images", 0, "vztmpl,iso", "ProxmoxPrivilegesMissing"),
        ("dir", "rootdir,images", 0, "iso", "ProxmoxStorageUnsuitable"),
        ("dir", "images", 0, "vztmpl", "ProxmoxStorageUnsuitable"),
        ("lvmthin", "rootdir,images", 0, "vztmpl", "ProxmoxStorageUnsuitable"),
        ("lvmthin", "rootdir,images", 1, "vztmpl", "ProxmoxPrivilegesMissing"),
    ],
)
async def test_storage_needs_rootdir_content_and_directories_unless_disks_have_a_size(
    tmp_path: Path, kind: str, content: str, size: int, templates: str, reason: str
) -> None:
    async with scripted_pve() as server:
        server.script("GET", "/version", data({"version": "9.2.11"}))
        status = {"type": kind, "content": content, "active": 1, "enabled": 1}
        server.script("GET", "/nodes/pve/storage/x/status", data(status))
        status = {"type": "dir", "content": templates, "active": 1, "enabled": 1}
        server.script("GET", "/nodes/pve/storage/local/status", data(status))
        server.script("GET", "/access/permissions", data({}))
        config = server.config(tmp_path, storage="x", rootfs_size_gib=size)
        api = ProxmoxApi(config)
        await api.start()
        health = ProxmoxHealth(config, api)
        await health.poll()
        await api.close()
    assert health.condition.reason == reason


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (
            refusal(400, "Parameter verification failed.", {"storage": "No such storage."}),
            "ProxmoxStorageMissing",
            "storage x does not exist in Proxmox (proxmox.storage)",
        ),
        (
            data({"type": "dir", "content": "rootdir", "active": 0, "enabled": 0}),
            "ProxmoxStorageInactive",
            "storage x is disabled, or not for this node (/etc/pve/storage.cfg) (proxmox.storage)",
        ),
        (
            data({"type": "dir", "content": "rootdir", "active": 0, "enabled": 1}),
            "ProxmoxStorageInactive",
            "storage x is offline: `pvesm status` on the node says why (proxmox.storage)",
        ),
    ],
)
async def test_storage_that_cannot_be_used_is_named_with_its_setting(
    tmp_path: Path, answer: Step, reason: str, message: str
) -> None:
    async with scripted_pve() as server:
        server.script("GET", "/version", data({"version": "9.2.11"}))
        server.script("GET", "/nodes/pve/storage/x/status", answer)
        status = {"type": "dir", "content": "vztmpl", "active": 1, "enabled": 1}
        server.script("GET", "/nodes/pve/storage/local/status", data(status))
        config = server.config(tmp_path, storage="x")
        api = ProxmoxApi(config)
        await api.start()
        health = ProxmoxHealth(config, api)
        await health.poll()
        await api.close()
    assert (health.condition.reason, health.condition.message) == (reason, message)
