# SPDX-License-Identifier: Apache-2.0
"""What tells a pod's CT from a copy of it, and how a CT without a pod is described."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace
from support.filled import filled

from pvecri.errors import Unavailable
from pvecri.linux.processes import Process
from pvecri.model import (
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    Vmid,
)
from pvecri.pods.foreign_cts import ForeignCt, ForeignCts, Reason, foreign_ct
from pvecri.pods.registry import PodEntry, Registry
from pvecri.pods.sandbox import ct_notes
from pvecri.pods.sandbox.ct_ownership import (
    AddedVolumes,
    CtOwnership,
    NotOwnCt,
    added_volumes,
    difference,
    is_pods_init,
)
from pvecri.proxmox.answers import CtConfig, Guest, TaskEntry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.errors import CtHidden, CtNotFound

VMID = Vmid(900_001)
POD = SandboxId("0123456789abcdef" * 4)
VOLUME = "local:900001/subvol-900001-disk-0.subvol"
CONFIG = SandboxConfig(metadata=SandboxMetadata(name="web-0", namespace="shop", uid="a1b2"))
DESTROYED = TaskEntry(upid="UPID:pve:1:", type="vzdestroy", starttime=1)


def notes(sandbox: str = POD, vmid: int = VMID, installation: str = "c0ffee") -> str:
    owner = Sandbox(id=SandboxId(sandbox), config=CONFIG, created_at=0, phase=SandboxPhase.READY, vmid=Vmid(vmid))
    return ct_notes.describe(owner, installation, "pve")


def config(description: str = "", volume: str = VOLUME, **options: Any) -> CtConfig:
    rootfs = f"{volume},size=0T"
    return CtConfig(description=description or notes(), hostname="web-0", rootfs=rootfs, **options)


def pod(tmp_path: Path, **values: Any) -> PodEntry:
    stopped = replace(filled(Sandbox), id=POD, vmid=VMID, ct_volume=VOLUME, phase=SandboxPhase.STOPPED)
    return PodEntry(replace(stopped, **values), tmp_path)


@dataclass
class Answers:
    """Proxmox's answers about one CT."""

    config: CtConfig | Exception = field(default_factory=config)
    replacement: TaskEntry | None = None
    after: CtConfig | Exception | None = None
    creating: bool = False

    async def idle_ct_config(self, vmid: Vmid, timeout: float | None = None) -> CtConfig:
        return self._of(self.config)

    async def ct_config(self, vmid: Vmid) -> CtConfig:
        return self._of(self.after or self.config)

    async def replaced_by(self, vmid: Vmid) -> TaskEntry | None:
        return self.replacement

    async def create_runs(self, vmid: Vmid) -> bool:
        return self.creating

    @staticmethod
    def _of(answer: CtConfig | Exception) -> CtConfig:
        if isinstance(answer, Exception):
            raise answer
        return answer


async def confirm(entry: PodEntry, answers: Answers) -> None:
    await CtOwnership(cast(ProxmoxApi, answers), 30.0).confirm(entry)


async def test_ct_with_the_pods_notes_volume_and_history_is_the_pods(tmp_path: Path) -> None:
    await confirm(pod(tmp_path), Answers())
    await confirm(pod(tmp_path, ct_volume=""), Answers())  # of an earlier version


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (Answers(config(notes(sandbox="f" * 64))), "notes do not name the pod"),
        (Answers(config("the shop's database")), "notes do not name the pod"),
        (Answers(config(volume="local:900001/subvol-900001-disk-1.subvol")), "disk-1.subvol, the pod's was"),
        (Answers(config(volume="moved:vm-900001-disk-0")), "moved:vm-900001-disk-0, the pod's was"),
        (Answers(config(volume="")), "root volume is missing"),
        (Answers(config(template=True)), "template"),
        (Answers(replacement=DESTROYED), "task UPID:pve:1: has replaced it"),
        (Answers(CtHidden("not in the pool")), "not in our pool"),
    ],
)
async def test_ct_that_is_another_is_not_the_pods(tmp_path: Path, answers: Answers, reason: str) -> None:
    with pytest.raises(NotOwnCt, match=reason):
        await confirm(pod(tmp_path), answers)


async def test_ct_that_stays_hidden_after_an_interrupted_create_is_anothers_once_no_create_runs(
    tmp_path: Path,
) -> None:
    entry, hidden = pod(tmp_path, ct_made=False), CtHidden("being created")
    with pytest.raises(CtHidden):
        await confirm(entry, Answers(hidden, creating=True))
    with pytest.raises(NotOwnCt, match="not in our pool"):
        await confirm(entry, Answers(hidden))


async def test_ct_whose_own_destroy_has_just_ended_is_missing(tmp_path: Path) -> None:
    answers = Answers(replacement=DESTROYED, after=CtNotFound("read", "does not exist"))
    with pytest.raises(CtNotFound):
        await confirm(pod(tmp_path), answers)


async def test_ct_whose_create_is_unanswered_may_appear_until_the_request_timeout(tmp_path: Path) -> None:
    entry = pod(tmp_path, ct_made=False)
    missing = Answers(CtNotFound("read", "does not exist"))
    entry.create_unanswered = time.monotonic()
    with pytest.raises(Unavailable, match=f"CT {VMID} does not exist yet"):
        await confirm(entry, missing)
    await confirm(entry, Answers())
    entry.create_unanswered = time.monotonic() - 31
    with pytest.raises(CtNotFound):
        await confirm(entry, missing)


async def test_running_ct_needs_no_evidence_of_proxmox(tmp_path: Path) -> None:
    entry = pod(tmp_path)
    entry.init = Process(os.getpid())
    await confirm(entry, Answers(config("edited by hand")))
    entry.init.close()


def test_storage_that_is_named_with_a_key_is_the_same_volume(tmp_path: Path) -> None:
    assert difference(pod(tmp_path), config(volume=f"volume={VOLUME}")) == ""


def test_init_with_another_pid_namespace_is_not_the_pods(tmp_path: Path) -> None:
    ready = pod(tmp_path, phase=SandboxPhase.READY)
    pin = ready.namespace("pid")
    assert is_pods_init(ready, os.getpid())  # without pin: of an earlier version
    assert not is_pods_init(pod(tmp_path), os.getpid())  # without pin: stopped
    pin.parent.mkdir()
    pin.symlink_to("/proc/self/ns/pid")
    assert is_pods_init(pod(tmp_path), os.getpid())
    pin.unlink()
    pin.symlink_to("/proc/self/ns/net")
    assert not is_pods_init(ready, os.getpid())


# -- CTs without a pod ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vmid", "installation", "reason"),
    [
        (900_002, "c0ffee", Reason.COPY),
        (900_002, "another", Reason.COPY),
        (VMID, "c0ffee", Reason.UNKNOWN_POD),
        (VMID, "another", Reason.OTHER_INSTALLATION),
        (VMID, "", Reason.OTHER_INSTALLATION),
    ],
)
def test_foreign_ct_has_a_reason(vmid: int, installation: str, reason: Reason) -> None:
    found = foreign_ct(vmid, config(), installation)
    assert found is not None
    assert (found.vmid, found.name, found.pod, found.sandbox, found.reason) == (
        vmid,
        "web-0",
        "shop/web-0",
        POD,
        reason,
    )


def test_ct_whose_notes_name_no_pod_is_none_of_pvecris() -> None:
    assert foreign_ct(VMID, CtConfig(description="the shop's database"), "c0ffee") is None


class Listing(Answers):
    """Answers with a list of guests."""

    guests_of: tuple[Guest, ...] = ()

    async def guests(self) -> tuple[Guest, ...]:
        return self.guests_of


class Pods:
    """A registry with one pod."""

    def __init__(self, entry: PodEntry) -> None:
        self._entry = entry

    def cts(self) -> list[PodEntry]:
        return [self._entry]


async def test_search_takes_only_unknown_cts_of_this_node_and_logs_each_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = Listing()
    listing.guests_of = (
        Guest(vmid=Vmid(3), node="pve", type="lxc"),
        Guest(vmid=Vmid(1), node="other", type="lxc"),
        Guest(vmid=Vmid(2), node="pve", type="qemu"),
        Guest(vmid=VMID, node="pve", type="lxc"),
    )
    registry = cast(Registry, Pods(pod(tmp_path)))
    search = ForeignCts(cast(ProxmoxApi, listing), registry, "pve", "c0ffee")
    for _ in range(2):
        await search.search()
        assert [each.vmid for each in search.found] == [3]
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "CT 3 (web-0) has the notes of pod shop/web-0"
    ]
    listing.config = CtNotFound("read", "destroyed meanwhile")
    await search.search()
    assert search.found == list[ForeignCt]()


# -- volumes that were added --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "own"),
    [
        ("mp0", "local:900001/vm-900001-disk-1.raw,mp=/data,size=8G", "local:900001/vm-900001-disk-1.raw"),
        ("mp12", "volume=tank:subvol-900001-disk-1,mp=/data", "tank:subvol-900001-disk-1"),
        ("unused0", "local-lvm:vm-900001-disk-2", "local-lvm:vm-900001-disk-2"),
        ("mp0", "/srv/vm-900001-data,mp=/data", ""),
        ("mp0", "/dev/vg/vm-900001-disk-1,mp=/data", ""),
        ("mp0", "tank:subvol-105-disk-0,mp=/data,shared=1", ""),
        ("rootfs", VOLUME, ""),
        ("description", "local-lvm:vm-900001-disk-2", ""),
    ],
)
def test_added_volumes(option: str, value: str, own: str) -> None:
    assert added_volumes(VMID, config(raw={option: value})) == ({option: own} if own else {})


async def test_ct_with_an_added_volume_may_be_stopped_and_not_destroyed(tmp_path: Path) -> None:
    volume = "local:900001/vm-900001-disk-1.raw"
    ownership = CtOwnership(cast(ProxmoxApi, Answers(config(raw={"mp0": f"{volume},mp=/data"}))), 30.0)
    await ownership.confirm(pod(tmp_path))
    with pytest.raises(AddedVolumes, match=rf"CT {VMID} .*mp0 {volume}.*pct move-volume {VMID} mp0"):
        await ownership.confirm_destroy(pod(tmp_path))
    ownership = CtOwnership(cast(ProxmoxApi, Answers(config(raw={"mp0": "/srv/data,mp=/data"}))), 30.0)
    await ownership.confirm_destroy(pod(tmp_path))
