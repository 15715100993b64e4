# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storages that are disabled, not mounted or full, and the CTs on them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pve_replay.process import VMIDS, NodeProcess, new_state_dir
from pve_replay.sandbox_template import write_template

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="starts CTs: needs root"),
    pytest.mark.skipif(not Path("/usr/bin/lxc-start").exists(), reason="starts CTs: needs LXC"),
]

VMID = VMIDS[0]
CT = f"/nodes/pve/lxc/{VMID}"
STORAGE = "/nodes/pve/storage/local"
PARAMETERS = {
    "vmid": VMID, "ostemplate": "local:vztmpl/sandbox_1.0.tar.gz", "rootfs": "local:0", "hostname": "sandbox",
    "memory": 64, "swap": 0, "ostype": "unmanaged",
}  # fmt: skip
DISABLED = "storage 'local' is disabled"


async def create(node: NodeProcess, **options: Any) -> None:
    await node.task("POST", "/nodes/pve/lxc", PARAMETERS | options)


@contextmanager
def tiny(path: Path, options: str) -> Iterator[None]:
    """A small filesystem on a directory while the context lasts."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# -- disabled ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def disabled(node: NodeProcess) -> AsyncIterator[NodeProcess]:
    """A node with a CT, whose only storage is disabled then."""
    await create(node)
    await node.ask("PUT", "/storage/local", {"disable": 1})
    yield node
    await node.ask("PUT", "/storage/local", {"delete": "disable"})
    await node.task("DELETE", CT)


async def test_disabled_storage_refuses_cts_and_lists_nothing(disabled: NodeProcess) -> None:
    parameters = PARAMETERS | {"vmid": VMID + 1}
    assert await disabled.refusal("POST", "/nodes/pve/lxc", parameters) == (500, DISABLED)
    assert await disabled.refusal("GET", f"{STORAGE}/content") == (500, DISABLED)
    status = await disabled.get(f"{STORAGE}/status")
    assert (status["enabled"], status["active"], status["total"]) == (0, 0, 0)


async def test_ct_on_a_disabled_storage_does_not_start(disabled: NodeProcess) -> None:
    assert (await disabled.failed_task("POST", f"{CT}/status/start"))[0] == DISABLED


async def test_removal_that_fails_within_its_delay_is_an_error(disabled: NodeProcess) -> None:
    path = f"{STORAGE}/content/local:vztmpl%2Fsandbox_1.0.tar.gz"
    assert (await disabled.failed_task("DELETE", path))[0] == DISABLED
    assert await disabled.refusal("DELETE", f"{path}?delay=10") == (500, DISABLED)


async def test_failed_removal_of_a_volume_leaves_the_ct_unchanged(disabled: NodeProcess) -> None:
    before = await disabled.get(f"{CT}/config")
    assert (await disabled.failed_task("DELETE", CT))[0] == DISABLED
    assert await disabled.get(f"{CT}/config") == before


# -- not there ----------------------------------------------------------------------------------------------------


async def test_storage_that_is_not_mounted_is_inactive(node: NodeProcess) -> None:
    await create(node)
    await node.ask("PUT", "/storage/local", {"is_mountpoint": "yes"})
    path = node.state_dir / "storage/local"
    words = (
        "unable to activate storage 'local' - directory is expected to be a mount point but is not mounted: "
        f"'{path}'"
    )
    assert await node.refusal("POST", "/nodes/pve/lxc", PARAMETERS | {"vmid": VMID + 1}) == (500, words)
    assert await node.refusal("GET", f"{STORAGE}/content") == (500, words)
    assert (await node.failed_task("POST", f"{CT}/status/start"))[0] == words
    status = await node.get(f"{STORAGE}/status")
    assert (status["enabled"], status["active"], status["total"]) == (1, 0, 0)


async def test_ct_whose_volume_is_gone_does_not_start_and_can_be_destroyed(node: NodeProcess) -> None:
    await create(node)
    volume = str((await node.get(f"{CT}/config"))["rootfs"]).partition(",")[0]
    shutil.rmtree(node.state_dir / "storage/local/images" / volume.removeprefix("local:"))
    failed = await node.failed_task("POST", f"{CT}/status/start")
    assert failed[0] == f"volume '{volume}' does not exist"
    await node.task("DELETE", CT)


async def test_directory_that_cannot_be_removed_stays_after_the_destroy(node: NodeProcess) -> None:
    await create(node)
    volume = node.state_dir / f"storage/local/images/{VMID}/subvol-{VMID}-disk-0.subvol"
    (volume / "busy").mkdir()
    with tiny(volume / "busy", "size=64k"):
        exitstatus, log = await node.ended(await node.ask("DELETE", CT))
        assert exitstatus == "OK"
        place = "/usr/share/perl5/PVE/Storage/Plugin.pm line 1136."
        assert f"cannot remove directory for {volume}/busy: Device or resource busy at {place}" in log
    assert volume.is_dir()
    await create(node)
    assert (await node.get(f"{CT}/config"))["rootfs"] == f"local:{VMID}/subvol-{VMID}-disk-1.subvol,size=0T"
    await node.task("DELETE", CT)


# -- full ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=64k", "--skip-old-files --anchored --exclude './dev/*'' failed: exit code 2"),
        (
            "size=1m,nr_inodes=2",
            f"/images/{VMID}: No space left on device at /usr/share/perl5/PVE/Storage/Plugin.pm line 1055.",
        ),
    ],
    ids=["no blocks", "no inodes"],
)
async def test_create_on_a_storage_without_space_fails_and_leaves_nothing(options: str, words: str) -> None:
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--vm-storage", "small=dir") as node:
            await node.upload(write_template(state_dir / "sandbox_1.0.tar.gz"))
            with tiny(state_dir / "storage/small", options):
                images = state_dir / "storage/small/images"
                images.mkdir()
                parameters = PARAMETERS | {"rootfs": "small:0"}
                failed, _ = await node.failed_task("POST", "/nodes/pve/lxc", parameters)
                assert failed.startswith(f"unable to create CT {VMID} - ")
                assert failed.endswith(words)
                assert not list(images.iterdir())
            assert (await node.refusal("GET", f"{CT}/config"))[0] == 500


async def test_upload_to_a_storage_without_space_fails_and_leaves_nothing(node: NodeProcess) -> None:
    cache = node.state_dir / "storage/local/template/cache"
    with tiny(cache, "size=16k"):
        upid = await upload(node, os.urandom(64 * 1024))
        status, _ = await node.ended(upid)
        assert status == f"import failed: cp: error writing '{cache}/a.tar.gz': No space left on device"
        assert not list(cache.iterdir())


# -- uploads ------------------------------------------------------------------------------------------------------


async def upload(node: NodeProcess, data: bytes, **fields: str) -> str:
    """Upload a template; the UPID, or the refusal."""
    form = aiohttp.FormData()
    for name, value in {"content": "vztmpl", **fields}.items():
        form.add_field(name, value)
    form.add_field("filename", data, filename="a.tar.gz")
    status, reason, answer = await node.post_form(f"{STORAGE}/upload", form)
    return str(answer["data"]) if status == 200 else f"{status} {reason} {answer.get('errors', '')}".strip()


async def test_checksum_of_an_upload_is_verified(node: NodeProcess) -> None:
    digest = hashlib.sha256(b"data").hexdigest()
    upid = await upload(node, b"data", **{"checksum": digest.upper(), "checksum-algorithm": "sha256"})
    status, log = await node.ended(upid)
    assert status == "OK"
    assert "calculating checksum...OK, checksum verified" in log

    upid = await upload(node, b"other", **{"checksum": digest, "checksum-algorithm": "sha256"})
    found = hashlib.sha256(b"other").hexdigest()
    assert (await node.ended(upid))[0] == f"checksum mismatch: got '{found}' != expect '{digest}'"
    assert (node.state_dir / "storage/local/template/cache/a.tar.gz").read_bytes() == b"data"


async def test_upload_of_content_that_the_storage_does_not_allow_is_refused(node: NodeProcess) -> None:
    assert "400" in await upload(node, b"data", checksum="0")
    assert (await upload(node, b"data", content="nosuch")).startswith("400 ")
    await node.ask("PUT", "/storage/local", {"content": "rootdir,iso"})
    assert await upload(node, b"data") == "500 storage 'local' does not support 'vztmpl' content"
    await node.ask("PUT", "/storage/local", {"disable": 1})
    assert await upload(node, b"data") == f"500 {DISABLED}"
