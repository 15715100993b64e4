# SPDX-License-Identifier: AGPL-3.0-or-later
"""The account of docs/proxmox-setup.md has the privileges that pods need, and no others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from support.node import VMIDS, EmbeddedNode, embedded_node
from trial.account import SETUP, documented_calls

from pvecri.checks import tags
from pvecri.config.settings import Config
from pvecri.errors import PermissionDenied
from pvecri.model import Vmid
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec
from pvecri.proxmox.errors import Forbidden
from pvecri.proxmox.sizing import CtSize

ROLES = {
    call.parameters["roleid"]: frozenset(call.parameters["privs"].split())
    for call in documented_calls(SETUP.read_text(), {})
    if call.path == "/access/roles"
}
NEEDED = [
    *(("KubePods", privilege, "/pool/kubernetes") for privilege in sorted(ROLES["KubePods"])),
    ("KubeNode", "Sys.Audit", "/nodes/pve"),
    ("KubeRootfs", "Datastore.AllocateSpace", "/storage/local"),
    ("KubeTemplates", "Datastore.AllocateTemplate", "/storage/local"),
    ("KubeTemplates", "Datastore.Audit", "/storage/local"),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with embedded_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
async def api(node: EmbeddedNode) -> AsyncIterator[ProxmoxApi]:
    client = ProxmoxApi(node.config())
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def spec(api: ProxmoxApi, node: EmbeddedNode) -> CtSpec:
    volid, template = await api.ensure_sandbox_template()
    return CtSpec(
        vmid=Vmid(VMIDS.first),
        hostname="web",
        template=volid,
        storage="local",
        size=CtSize(memory_mib=64, cpulimit=0.5),
        arch=template.arch,
        description="pod",
        pool=node.account.pool,
    )


@contextmanager
def withheld(node: EmbeddedNode, role: str, privilege: str) -> Iterator[None]:
    """The account without one privilege while the context lasts."""
    administrator = node.descriptor.administrator(node.state_dir)
    administrator.ask("PUT", f"/access/roles/{role}", {"privs": " ".join(ROLES[role] - {privilege})})
    try:
        yield
    finally:
        administrator.ask("PUT", f"/access/roles/{role}", {"privs": " ".join(ROLES[role])})


async def walk_through_life(api: ProxmoxApi, spec: CtSpec) -> None:
    """What a pod's CT is asked for, from its create to its destroy."""
    assert (await api.node_status()).memory.total
    await api.create_ct(msgspec.structs.replace(spec, start=False))
    await api.start_ct(spec.vmid)
    await api.configure_ct(spec.vmid, memory=96, cpulimit=1.0, description="pod, renamed", hostname="web-1")
    await api.configure_ct(spec.vmid, tags="pvecri")
    assert spec.vmid in {guest.vmid for guest in await api.guests()}
    assert (await api.ct_config(spec.vmid)).raw["memory"] == "96"
    await api.stop_ct(spec.vmid)
    await api.destroy_ct(spec.vmid)
    await api.destroy_ct(spec.vmid)


async def test_documented_account_is_sufficient_for_a_pods_life(api: ProxmoxApi, spec: CtSpec) -> None:
    assert await api.missing_privileges() == []
    await walk_through_life(api, spec)


async def test_documented_account_can_do_nothing_outside_its_pool(api: ProxmoxApi, spec: CtSpec) -> None:
    with pytest.raises(PermissionDenied):
        await api.create_ct(msgspec.structs.replace(spec, pool=""))


async def test_privileged_cts_need_sys_modify(api: ProxmoxApi, node: EmbeddedNode, spec: CtSpec) -> None:
    privileged = msgspec.structs.replace(spec, unprivileged=False)
    await walk_through_life(api, privileged)
    with withheld(node, "KubePrivileged", "Sys.Modify"):
        with pytest.raises(PermissionDenied, match=r"Permission check failed \(/, Sys\.Modify\)"):
            await api.create_ct(privileged)
        await walk_through_life(api, spec)


@pytest.mark.parametrize(("role", "privilege", "path"), NEEDED)
async def test_each_missing_privilege_is_named(
    api: ProxmoxApi, node: EmbeddedNode, spec: CtSpec, role: str, privilege: str, path: str
) -> None:
    with withheld(node, role, privilege):
        missing = await api.missing_privileges()
        assert missing == [f"{path}: {privilege}"]
    assert await api.missing_privileges() == []


@pytest.mark.parametrize("privilege", sorted(ROLES["KubePods"] - {"VM.Audit", "VM.Allocate"}))
async def test_proxmoxs_error_for_a_missing_privilege_is_returned(
    api: ProxmoxApi, node: EmbeddedNode, spec: CtSpec, privilege: str
) -> None:
    with withheld(node, "KubePods", privilege):
        text = rf"Permission check failed \(/vms/{spec.vmid}, {privilege.replace('.', '[.]')}"
        with pytest.raises(PermissionDenied, match=text):
            await walk_through_life(api, spec)
    await api.destroy_ct(spec.vmid)


@contextmanager
def datacenter(node: EmbeddedNode, options: Mapping[str, str], file: Path) -> Iterator[None]:
    """The datacenter with these options, and `file` with them as Proxmox writes datacenter.cfg."""
    administrator = node.descriptor.administrator(node.state_dir)
    administrator.ask("PUT", "/cluster/options", dict(options))
    file.write_text("".join(f"{name}: {value}\n" for name, value in options.items()))
    try:
        yield
    finally:
        administrator.ask("PUT", "/cluster/options", {"delete": ",".join(options)})


async def test_check_names_the_tags_that_proxmox_would_refuse(
    api: ProxmoxApi, node: EmbeddedNode, spec: CtSpec, tmp_path: Path
) -> None:
    file = tmp_path / "datacenter.cfg"
    settings = Config(proxmox=msgspec.structs.replace(node.config(), namespace_tags=True))

    async def refused() -> list[str]:
        return [each.message.split(": ")[2] async for each in tags.check(settings, api, file)]

    await api.create_ct(msgspec.structs.replace(spec, start=False))
    for options, reasons in (
        ({"user-tag-access": "user-allow=list,user-allow-list=blue"}, ["user-allow=list"] * 2),
        ({"user-tag-access": "user-allow=none"}, ["user-allow=none"] * 2),
        ({"user-tag-access": "user-allow=existing"}, ["user-allow=existing"] * 2),
        ({"registered-tags": "blue;pvecri"}, ["registered-tags"]),
    ):
        with withheld(node, "KubePrivileged", "Sys.Modify"), datacenter(node, options, file):
            for found, reason in zip(await refused(), reasons, strict=True):
                assert reason in found
            with pytest.raises(PermissionDenied, match=r"Sys\.Modify for modifying tag 'pvecri'"):
                await api.configure_ct(spec.vmid, tags="pvecri")
        with datacenter(node, options, file):
            assert await refused() == []  # with Sys.Modify
    allowed = {"user-tag-access": "user-allow=list,user-allow-list=blue;ns-shop;pvecri"}
    with withheld(node, "KubePrivileged", "Sys.Modify"), datacenter(node, allowed, file):
        assert len(await refused()) == 1  # of any namespace
        await api.configure_ct(spec.vmid, tags="ns-shop;pvecri")
    await api.destroy_ct(spec.vmid)


async def test_power_privilege_is_needed_for_stop_but_not_for_create(
    api: ProxmoxApi, node: EmbeddedNode, spec: CtSpec
) -> None:
    with withheld(node, "KubePods", "VM.PowerMgmt"):
        await api.create_ct(spec)
        with pytest.raises(PermissionDenied, match=r"VM\.PowerMgmt"):
            await api.stop_ct(spec.vmid)
    await api.stop_ct(spec.vmid)
    await api.destroy_ct(spec.vmid)


async def test_account_that_sees_no_ct_at_all_is_refused_and_does_not_wait_for_one(
    node: EmbeddedNode, api: ProxmoxApi, spec: CtSpec
) -> None:
    await api.create_ct(spec)
    with withheld(node, "KubePods", "VM.Audit"), pytest.raises(Forbidden, match=rf"/vms/{spec.vmid}, VM\.Audit"):
        await api.ct_config(spec.vmid)
    await api.stop_ct(spec.vmid)
    await api.destroy_ct(spec.vmid)
