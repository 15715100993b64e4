# SPDX-License-Identifier: Apache-2.0
"""Attachments are kept on disk as they were."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pvecri.config.settings import NetworkConfig
from pvecri.model import SandboxId
from pvecri.network import conflist
from pvecri.network.attachment import Attachment, AttachmentStore
from pvecri.network.errors import RecordsUnavailable
from pvecri.network.plugins import PluginRunner

NETWORK = conflist.parse(
    b'{"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "capabilities": {"mac": true}}', "/etc/10.conf"
)
ATTACHMENT = Attachment(
    sandbox_id=SandboxId("5a"),
    netns="/proc/1/ns/net",
    args="IgnoreUnknown=1",
    arguments={"mac": "02:00:00:00:00:01"},
    network=NETWORK,
)


@pytest.fixture
def store(tmp_path: Path) -> AttachmentStore:
    made = AttachmentStore(tmp_path / "cni")
    made.prepare()
    return made


@pytest.mark.parametrize("result", [b"", b'{"cniVersion": "1.0.0"}'])
def test_record_round_trips(store: AttachmentStore, result: bytes) -> None:
    attachment = msgspec.structs.replace(ATTACHMENT, result=result)

    store.write(attachment)

    assert store.read(SandboxId("5a")) == attachment
    assert store.sandboxes() == ["5a"]


def test_removed_record_is_not_read(store: AttachmentStore) -> None:
    store.write(ATTACHMENT)

    store.remove(SandboxId("5a"))
    store.remove(SandboxId("5a"))

    assert store.read(SandboxId("5a")) is None
    assert store.sandboxes() == []


def test_invalid_record_is_ignored(store: AttachmentStore, tmp_path: Path) -> None:
    (tmp_path / "cni" / "5a.json").write_text('{"sandboxId"')

    assert store.read(SandboxId("5a")) is None


async def test_plugin_gets_runtime_config_instead_of_capabilities(tmp_path: Path) -> None:
    for name, script in (("first", "cat >&2; echo '{\"ips\": []}'"), ("bridge", "cat")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    first = conflist.Plugin(type="first", options={"type": "first"})
    network = msgspec.structs.replace(NETWORK, plugins=(first, *NETWORK.plugins))
    runner = PluginRunner(NetworkConfig(bin_dirs=(tmp_path,)))

    config = msgspec.json.decode(await runner.add(msgspec.structs.replace(ATTACHMENT, network=network)))

    assert config == {
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "bridge",
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "prevResult": {"ips": []},
    }


def test_directory_that_cannot_be_read_is_not_taken_for_one_without_records(tmp_path: Path) -> None:
    """CNI's GC would free the addresses of running pods."""
    (tmp_path / "cni").touch()  # ENOTDIR, as EIO of a failed disk
    store = AttachmentStore(tmp_path / "cni")
    with pytest.raises(RecordsUnavailable, match=r"cannot be listed: Not a directory \(network.cache_dir\)"):
        store.sandboxes()
    with pytest.raises(RecordsUnavailable, match=r"5a\.json cannot be read"):
        store.read(SandboxId("5a"))
    with pytest.raises(RecordsUnavailable, match=r"cannot be written"):
        store.write(ATTACHMENT)
