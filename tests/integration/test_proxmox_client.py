# SPDX-License-Identifier: Apache-2.0
"""The Proxmox API client against an embedded node: the life of a CT, as pods have it."""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from support.node import VMIDS, EmbeddedNode, embedded_node

from pvecri.errors import PermissionDenied, Unavailable
from pvecri.linux import processes
from pvecri.model import Vmid
from pvecri.pods.sandbox.ct import INIT_NAMES
from pvecri.proxmox import privileges
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec, tags_parameter
from pvecri.proxmox.errors import CtExists, CtNotFound, ParameterError, ProxmoxTaskError
from pvecri.proxmox.sizing import CtSize

VMID = Vmid(VMIDS.first)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with embedded_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
async def api(node: EmbeddedNode) -> AsyncIterator[ProxmoxApi]:
    client = ProxmoxApi(node.config())
    await client.start()
    try:
        yield client
        await client.destroy_ct(VMID)
    finally:
        await client.close()


@pytest.fixture
async def spec(api: ProxmoxApi, node: EmbeddedNode) -> CtSpec:
    volid, template = await api.ensure_sandbox_template()
    return CtSpec(
        vmid=VMID,
        hostname="web_0.default",
        template=volid,
        storage="local",
        size=CtSize(memory_mib=64, cpulimit=0.5, cpuunits=50),
        arch=template.arch,
        description='{"name": "web"}\nsecond line',
        pool=node.account.pool,
    )


def init_pid() -> int:
    """The PID of the CT's init on this machine; 0 while the CT does not run."""
    command = ["lxc-info", "--name", str(VMID), "--pid", "--no-humanize"]
    return int(subprocess.run(command, check=False, capture_output=True, text=True).stdout or 0)


async def running() -> int:
    """The PID of the CT's init, once it runs."""
    while not (pid := init_pid()):
        await asyncio.sleep(0.01)
    return pid


async def test_a_created_ct_runs_its_init(api: ProxmoxApi, spec: CtSpec) -> None:
    upid = await api.create_ct(spec)

    pid = await running()
    while (name := processes.command_name(pid)) not in INIT_NAMES:
        assert name in {"init", "sh", "busybox", "lxc-start"}
    assert (upid.kind, upid.id) == ("vzcreate", str(VMID))
    assert await api.failed_start(VMID, since=upid.start_time) is None


async def test_config_of_a_ct_is_as_requested(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))

    config = await api.ct_config(VMID)

    assert config.description.strip() == spec.description
    sent = {
        "hostname": "web-0.default",
        "memory": "64",
        "swap": "0",
        "cpulimit": "0.5",
        "cpuunits": "50",
        "unprivileged": "1",
        "ostype": "unmanaged",
    }
    assert {name: config.raw.get(name) for name in sent} == sent


async def test_a_ct_is_listed_with_its_tags(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))
    await api.configure_ct(VMID, tags=tags_parameter(("pvecri", "Test")))

    (guest,) = [guest for guest in await api.guests() if guest.vmid == VMID]

    assert guest.type == "lxc"
    assert set((await api.ct_config(VMID)).raw["tags"].split(";")) == {"pvecri", "test"}


async def test_vmid_in_use_is_refused(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))

    with pytest.raises(CtExists):
        await api.create_ct(spec)


async def test_stop_and_destroy_are_idempotent(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(spec)
    await running()

    await api.stop_ct(VMID)
    await api.stop_ct(VMID)
    assert not init_pid()
    await api.destroy_ct(VMID)
    await api.destroy_ct(VMID)
    await api.stop_ct(VMID)

    with pytest.raises(CtNotFound):
        await api.ct_config(VMID)


async def test_running_ct_is_destroyed_with_force(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(spec)
    await running()

    await api.destroy_ct(VMID)

    assert VMID not in {guest.vmid for guest in await api.guests()}


async def test_start_is_idempotent(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))

    await api.start_ct(VMID)
    await api.start_ct(VMID)
    assert init_pid()


async def test_options_are_changed_and_deleted(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))

    await api.configure_ct(VMID, memory=128, cpulimit=1.25, description=None)
    await api.configure_ct(VMID)

    config = await api.ct_config(VMID)
    assert (config.raw["memory"], config.raw["cpulimit"], config.description) == ("128", "1.25", "")


async def test_a_refused_parameter_is_named(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))

    with pytest.raises(ParameterError, match=f"configure CT {VMID}: .*memory: ") as refusal:
        await api.configure_ct(VMID, memory=1)

    assert "memory" in refusal.value.errors


async def test_the_template_is_uploaded_once(api: ProxmoxApi) -> None:
    volid, template = await api.ensure_sandbox_template()

    assert volid == f"local:vztmpl/{template.name}"
    assert await api.find_template(template.name) == volid
    assert await api.ensure_template(b"never sent", template.name) == volid


async def test_uploaded_template_is_complete(api: ProxmoxApi, node: EmbeddedNode, tmp_path: Path) -> None:
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("etc"))
    file = tmp_path / "archive"
    file.write_bytes(content.getvalue())

    await api.ensure_template(file, "pvecri-test_1_amd64.tar.gz")

    (stored,) = node.state_dir.rglob("pvecri-test_1_amd64.tar.gz")
    assert stored.read_bytes() == content.getvalue()


async def test_node_and_storage_have_a_size(api: ProxmoxApi) -> None:
    status = await api.node_status()
    storage = await api.storage_status("local")

    assert status.memory.total > 1 << 28
    assert {"rootdir", "vztmpl"} <= storage.contents
    assert storage.active
    assert (await api.version()).version


async def test_documented_account_lacks_no_privilege_and_has_none_over_other_guests(
    api: ProxmoxApi, node: EmbeddedNode
) -> None:
    assert await api.missing_privileges() == []
    assert await api.permissions(f"/pool/{node.account.pool}") >= privileges.POD_PRIVILEGES
    assert await api.permissions("/vms") == frozenset()


async def test_password_works_like_a_token(node: EmbeddedNode) -> None:
    client = ProxmoxApi(node.password_config())
    await client.start()
    try:
        assert (await client.version()).version
        await client.destroy_ct(VMID)
    finally:
        await client.close()


async def test_error_for_a_wrong_secret_names_the_setting(node: EmbeddedNode, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("11111111-1111-4111-8111-111111111111")
    client = ProxmoxApi(msgspec.structs.replace(node.config(), token_secret_file=secret))
    await client.start()
    try:
        with pytest.raises(PermissionDenied, match=r"proxmox\.token_secret_file"):
            await client.version()
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"fingerprint": "00" * 32}, "which is not proxmox.fingerprint"), ({"fingerprint": ""}, "proxmox.ca_file")],
)
async def test_untrusted_server_is_refused(node: EmbeddedNode, change: dict[str, str], message: str) -> None:
    client = ProxmoxApi(msgspec.structs.replace(node.config(), **change))
    await client.start()
    try:
        with pytest.raises(Unavailable, match=message):
            await client.version()
    finally:
        await client.close()


async def test_failed_start_has_the_tasks_error(api: ProxmoxApi, spec: CtSpec) -> None:
    await api.create_ct(msgspec.structs.replace(spec, start=False))
    await api.configure_ct(VMID, entrypoint="/nonexistent")

    with pytest.raises(ProxmoxTaskError, match=f"start CT {VMID}"):
        await api.start_ct(VMID)

    assert "failed" in (await api.failed_start(VMID) or "")
    assert await api.failed_start(VMID, since=1 << 40) is None


async def test_storage_has_type_and_path(api: ProxmoxApi, node: EmbeddedNode) -> None:
    found = await api.storage_config("local")
    assert (found.type, found.path.startswith("/")) == ("dir", True)
