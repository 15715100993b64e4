# SPDX-License-Identifier: AGPL-3.0-or-later
"""The account that docs/proxmox-setup.md makes can do what pods need, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from support.node import LXC_PATH, VMIDS, remove_cts

from pvecri.config import ProxmoxConfig
from pvecri.embedded.identity import Certificate, Identity
from pvecri.embedded.layout import Layout
from pvecri.embedded.node import EmbeddedNode
from pvecri.errors import PermissionDenied
from pvecri.model import Vmid
from pvecri.proxmox import privileges
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec
from pvecri.proxmox.sizing import CtSize

POOL = "kubernetes"
ROLES = {
    "KubePods": (f"/pool/{POOL}", privileges.POD_PRIVILEGES),
    "KubeNode": ("/nodes/pve", frozenset({"Sys.Audit"})),
    "KubeStorage": (
        "/storage/local",
        frozenset({"Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit"}),
    ),
}


USER, TOKEN, SECRET = "kube@pve", "kube@pve!node", "5ec4e700-0000-4000-8000-000000000001"


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[ProxmoxConfig]:
    """The settings of an account made as the documentation says, on an embedded node."""
    layout = Layout(tmp_path, "pve", LXC_PATH)
    layout.make_directories()
    certificate = Certificate.load_or_make(layout, "127.0.0.1")
    node = EmbeddedNode(layout, Identity.load_or_make(layout), host="127.0.0.1", port=0)
    node.pools[POOL] = set()
    node.add_token(TOKEN, SECRET, separated=False)
    for path, names in ROLES.values():
        node.grant(USER, path, *names)
    await node.serve(str(certificate.certificate), str(certificate.key))
    (tmp_path / "secret").write_text(SECRET)
    try:
        yield ProxmoxConfig(
            url=node.url,
            node="pve",
            fingerprint=certificate.fingerprint(),
            token_id=TOKEN,
            token_secret_file=tmp_path / "secret",
            pool=POOL,
        )
    finally:
        await node.shut_down()
        remove_cts(tmp_path)


@pytest.fixture
async def api(config: ProxmoxConfig) -> AsyncIterator[ProxmoxApi]:
    client = ProxmoxApi(config)
    await client.start()
    yield client
    await client.close()


async def test_the_documented_account_walks_a_pod_through_its_life(api: ProxmoxApi) -> None:
    assert await api.missing_privileges() == []
    assert (await api.node_status()).memory.total
    volid, template = await api.ensure_sandbox_template()
    spec = CtSpec(
        vmid=Vmid(VMIDS.first),
        hostname="web",
        template=volid,
        storage="local",
        size=CtSize(memory_mib=64),
        arch=template.arch,
        description="pod",
        pool=POOL,
    )

    await api.create_ct(spec)
    await api.start_ct(spec.vmid)
    await api.configure_ct(spec.vmid, memory=96, cpulimit=1.0, description="pod, renamed", hostname="web-1")
    await api.configure_ct(spec.vmid, tags="pvecri")
    assert spec.vmid in {guest.vmid for guest in await api.guests()}
    assert (await api.ct_config(spec.vmid)).memory == 96
    assert (await api.ct_status(spec.vmid)).pid
    await api.stop_ct(spec.vmid)
    await api.destroy_ct(spec.vmid)

    with pytest.raises(PermissionDenied):
        await api.create_ct(msgspec.structs.replace(spec, pool=""))
    with pytest.raises(PermissionDenied):
        await api.create_ct(msgspec.structs.replace(spec, unprivileged=False))
