# SPDX-License-Identifier: AGPL-3.0-or-later
"""Backups, restores and clones: what of a CT they keep and what they renew, and what is refused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from pve_replay.process import Login, NodeProcess

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes CTs: needs root"),
    pytest.mark.skipif(not Path("/usr/bin/lxc-start").exists(), reason="starts CTs: needs LXC"),
]

VMID = random.randrange(90_100, 90_900, 10)
OTHER = VMID + 1
CT, COPY = f"/nodes/pve/lxc/{VMID}", f"/nodes/pve/lxc/{OTHER}"
NET = "name=eth0,bridge=lo0,hwaddr=BC:24:11:00:00:01,type=veth"
OPTIONS = {"hostname": "web", "description": "the notes", "tags": "mine", "memory": 64, "net0": NET}


async def create(node: NodeProcess, **options: Any) -> None:
    parameters = {
        "vmid": VMID, "ostemplate": "local:vztmpl/sandbox_1.0.tar.gz", "rootfs": "local:0", "unprivileged": 1,
        "ostype": "unmanaged", "swap": 0,
    }  # fmt: skip
    await node.task("POST", "/nodes/pve/lxc", parameters | OPTIONS | options)


async def back_up(node: NodeProcess, **options: Any) -> str:
    await node.task("POST", "/nodes/pve/vzdump", {"vmid": VMID, "storage": "local", **options})
    listed = await node.get("/nodes/pve/storage/local/content?content=backup")
    return next(str(each["volid"]) for each in listed)


def restoring(backup: str, vmid: int = OTHER, **options: Any) -> dict[str, Any]:
    return {"vmid": vmid, "ostemplate": backup, "restore": 1, "storage": "local", **options}


async def config(node: NodeProcess, vmid: int) -> dict[str, Any]:
    answer = await node.get(f"/nodes/pve/lxc/{vmid}/config")
    assert isinstance(answer, dict)
    return answer


def volume(options: dict[str, Any]) -> str:
    return str(options["rootfs"]).partition(",")[0]


def root(node: NodeProcess, options: dict[str, Any]) -> Path:
    return node.state_dir / "storage/local/images" / volume(options).partition(":")[2]


@pytest.mark.parametrize("rootfs", ["local:0", "local:0.1"])
@pytest.mark.parametrize("compress", ["0", "gzip"])
async def test_restored_ct_has_all_but_the_root_volume(node: NodeProcess, rootfs: str, compress: str) -> None:
    await create(node, rootfs=rootfs)
    before = await config(node, VMID)
    if rootfs == "local:0":
        (root(node, before) / "etc/made-inside").write_text("data")
        os.chown(root(node, before) / "etc/made-inside", 100_007, 100_007)
    backup = await back_up(node, compress=compress)
    assert "lock" not in await config(node, VMID)
    await node.task("POST", "/nodes/pve/lxc", restoring(backup))
    after = await config(node, OTHER)
    kept = {"hostname", "description", "tags", "memory", "swap", "net0", "unprivileged", "ostype", "arch"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert volume(after) == volume(before).replace(str(VMID), str(OTHER))
    if rootfs == "local:0":
        made = root(node, after) / "etc/made-inside"
        assert (made.read_text(), made.stat().st_uid) == ("data", 100_007)
        assert not (root(node, after) / "etc/vzdump/pct.conf").exists()
    for path in (CT, COPY):
        await node.task("DELETE", path)


async def test_running_ct_is_backed_up_and_its_backup_starts(node: NodeProcess) -> None:
    await create(node, start=1, net0="name=eth0")
    await node.until(lambda: node.status_is(VMID, "running"))
    backup = await back_up(node, mode="snapshot")
    assert await node.status_is(VMID, "running")
    await node.task("POST", "/nodes/pve/lxc", restoring(backup, start=1))
    await node.until(lambda: node.status_is(OTHER, "running"))
    for path in (CT, COPY):
        await node.tasks_ended("")
        await node.task("DELETE", f"{path}?force=1")


async def test_restore_over_a_ct_names_the_new_volume_before_the_old_one_is_gone(node: NodeProcess) -> None:
    await create(node)
    before = await config(node, VMID)
    backup = await back_up(node)
    assert await node.refusal("POST", "/nodes/pve/lxc", restoring(backup, VMID)) == (
        500,
        f"CT {VMID} already exists on node 'pve'",
    )
    await node.ask("PUT", f"{CT}/config", {"hostname": "changed", "protection": 1})
    assert await node.refusal("POST", "/nodes/pve/lxc", restoring(backup, VMID, force=1)) == (
        500,
        f"unable to restore CT {VMID} - protection mode enabled",
    )
    await node.ask("PUT", f"{CT}/config", {"delete": "protection"})
    await node.task("POST", "/nodes/pve/lxc", restoring(backup, VMID, force=1))
    after = await config(node, VMID)
    assert after["hostname"] == "web"
    assert (volume(before)[-8:], volume(after)[-8:]) == ("0.subvol", "1.subvol")
    assert not root(node, before).exists()
    await node.task("DELETE", CT)
    # Now the name is free again.
    await node.task("POST", "/nodes/pve/lxc", restoring(backup, VMID))
    assert volume(await config(node, VMID)) == volume(before)
    await node.task("DELETE", CT)


async def test_restore_over_a_running_ct_is_refused(node: NodeProcess) -> None:
    await create(node, start=1, net0="name=eth0")
    await node.until(lambda: node.status_is(VMID, "running"))
    backup = await back_up(node)
    refused = await node.refusal("POST", "/nodes/pve/lxc", restoring(backup, VMID, force=1))
    assert refused == (500, "can't overwrite running container")
    await node.tasks_ended("")
    await node.task("DELETE", f"{CT}?force=1")


async def test_restore_that_fails_early_leaves_the_old_ct(node: NodeProcess) -> None:
    await create(node)
    before = await config(node, VMID)
    backup = await back_up(node)
    (node.state_dir / "storage/local/dump" / backup.rpartition("/")[2]).write_text("no archive")
    status, _ = await node.failed_task("POST", "/nodes/pve/lxc", restoring(backup, VMID, force=1))
    assert status.startswith(f"unable to restore CT {VMID} - ")
    assert await config(node, VMID) == before
    await node.failed_task("POST", "/nodes/pve/lxc", restoring(backup))
    assert (await node.refusal("GET", f"{COPY}/config"))[0] == 500
    await node.task("DELETE", CT)


async def test_macs_of_a_restore_are_kept_unless_unique_ones_are_wanted(node: NodeProcess) -> None:
    await create(node)
    await node.task("POST", "/nodes/pve/lxc", restoring(await back_up(node), unique=1))
    assert (await config(node, OTHER))["net0"] != (await config(node, VMID))["net0"]
    for path in (CT, COPY):
        await node.task("DELETE", path)


async def test_template_is_no_backup(node: NodeProcess) -> None:
    refused = await node.refusal("POST", "/nodes/pve/lxc", restoring("local:vztmpl/sandbox_1.0.tar.gz"))
    assert refused == (
        500,
        "unable to use volume local:vztmpl/sandbox_1.0.tar.gz - content type needs to be 'backup'",
    )


async def test_account_of_pods_can_neither_back_up_clone_nor_restore(node: NodeProcess, account: Login) -> None:
    await create(node)
    backup = await back_up(node)
    with node.asked_as(account):
        for path, parameters in (
            (f"{CT}/clone", {"newid": OTHER}),
            ("/nodes/pve/lxc", restoring(backup)),
        ):
            assert (await node.refusal("POST", path, parameters))[0] == 403, path
        # As with Proxmox, the task says so.
        status, _ = await node.failed_task("POST", "/nodes/pve/vzdump", {"vmid": VMID, "storage": "local"})
        assert status == f"Permission check failed (/vms/{VMID}, VM.Backup)"
    await node.task("DELETE", CT)


# -- clones --------------------------------------------------------------------------------------------------


async def test_clone_keeps_all_but_volume_and_macs(node: NodeProcess) -> None:
    await create(node)
    await node.task("POST", f"{CT}/clone", {"newid": OTHER})
    before, after = await config(node, VMID), await config(node, OTHER)
    kept = {"hostname", "description", "tags", "memory", "swap", "unprivileged", "ostype", "arch"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert volume(after) == volume(before).replace(str(VMID), str(OTHER))
    assert after["net0"] != before["net0"]
    assert "lock" not in before | after
    for path in (CT, COPY):
        await node.task("DELETE", path)


async def test_clone_is_refused_without_a_trace(node: NodeProcess) -> None:
    await create(node)
    for parameters, message in (
        ({"newid": VMID}, f"CT {VMID} already exists on node 'pve'"),
        ({"newid": OTHER, "target": "nowhere"}, "no such cluster node 'nowhere'"),
        ({"newid": OTHER, "storage": "nowhere"}, "storage 'nowhere' does not exist"),
        ({"newid": OTHER, "snapname": "none"}, "snapshot 'none' does not exist"),
    ):
        assert await node.refusal("POST", f"{CT}/clone", parameters) == (500, message)
    assert "lock" not in await config(node, VMID)
    await node.task("DELETE", CT)
