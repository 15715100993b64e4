# SPDX-License-Identifier: Apache-2.0
"""What the API client does when things go wrong in ways that a real node seldom shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from support.scripted_pve import ScriptedPve, Step, data, dropped, refusal, scripted_pve

from pvecri.errors import DeadlineExceeded, NotFound, PermissionDenied, Unavailable
from pvecri.model import Vmid
from pvecri.proxmox import rootfs_storage
from pvecri.proxmox.answers import TaskEntry
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec
from pvecri.proxmox.errors import CreateUnanswered, CtExists, CtLocked, CtNotFound, ProxmoxError, ProxmoxTaskError
from pvecri.proxmox.sizing import CtSize
from pvecri.proxmox.tasks import POLL, newest_first

VMID = Vmid(900_001)
CT = f"/nodes/pve/lxc/{VMID}"
SPEC = CtSpec(
    vmid=VMID,
    hostname="web",
    template="local:vztmpl/x.tar.gz",
    storage="local",
    size=CtSize(memory_mib=64),
    arch="arm64",
    description="pod of uid 42",
)
TASK = "UPID:pve:00000D6E:00009CE0:6B044A1C:vzcreate:900001:cri@pve!t1:"
TASK_PATH = "/nodes/pve/tasks/UPID%3Apve%3A00000D6E%3A00009CE0%3A6B044A1C%3Avzcreate%3A900001%3Acri%40pve%21t1%3A"
LISTED = data([{"upid": TASK, "type": "vzcreate", "starttime": 1795443228, "status": "OK"}])
NO_CT = refusal(500, f"Configuration file 'nodes/pve/lxc/{VMID}.conf' does not exist")
LOCKED = refusal(500, "CT is locked (backup)")


@pytest.fixture
async def pve() -> AsyncIterator[ScriptedPve]:
    async with scripted_pve() as server:
        server.script("GET", f"{TASK_PATH}/status", ended("OK"))
        server.script("GET", "/access/permissions", data({"/vms": {"VM.Audit": 1}}))
        server.script("GET", f"{TASK_PATH}/log", data([{"n": n, "t": f"line {n}"} for n in range(1, 9)]))
        yield server


@pytest.fixture
async def api(pve: ScriptedPve, tmp_path: Path) -> AsyncIterator[ProxmoxApi]:
    client = ProxmoxApi(pve.config(tmp_path, task_timeout=1.0))
    await client.start()
    yield client
    await client.close()


def ended(exitstatus: str) -> Step:
    return data({"upid": TASK, "status": "stopped", "exitstatus": exitstatus})


async def test_a_task_is_polled_until_it_has_ended(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", data(TASK))
    pve.script("GET", f"{TASK_PATH}/status", data({"status": "running"}), data({"status": "running"}), ended("OK"))

    assert str(await api.create_ct(SPEC)) == TASK

    assert pve.count("GET", f"{TASK_PATH}/status") == 3


async def test_task_with_warnings_succeeds(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", data(TASK))
    pve.script("GET", f"{TASK_PATH}/status", ended("WARNINGS: 1"))

    await api.create_ct(SPEC)


async def test_failed_task_error_has_the_end_of_its_log(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", data(TASK))
    pve.script("GET", f"{TASK_PATH}/status", ended("unable to create CT 900001 - no space"))

    with pytest.raises(ProxmoxTaskError, match=r"no space \[line 4; .*; line 8\]") as failure:
        await api.create_ct(SPEC)

    assert failure.value.upid == TASK


async def test_failed_task_error_does_not_repeat_its_exit_status(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", data(TASK))
    pve.script("GET", f"{TASK_PATH}/status", ended("no space"))
    pve.script(
        "GET", f"{TASK_PATH}/log", data([{"n": 1, "t": "mkfs: full"}, {"n": 2, "t": "TASK ERROR: no space"}])
    )

    with pytest.raises(ProxmoxTaskError, match=r"create CT 900001: no space \[mkfs: full\] \(task "):
        await api.create_ct(SPEC)


async def test_error_for_a_task_timeout_names_the_task(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", data(TASK))
    pve.script("GET", f"{TASK_PATH}/status", data({"status": "running"}))

    with pytest.raises(DeadlineExceeded, match=rf"{TASK} has not ended within 1 s \(proxmox\.task_timeout\)"):
        await api.create_ct(SPEC)


async def test_response_without_a_upid_is_an_error(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", data("surprise"))

    with pytest.raises(ProxmoxError, match="'surprise' is not a UPID"):
        await api.create_ct(SPEC)


async def test_create_that_was_not_processed_is_sent_again(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped, data(TASK))
    pve.script("GET", f"{CT}/config", NO_CT)

    await api.create_ct(SPEC)

    assert pve.count("POST", "/nodes/pve/lxc") == 2


async def test_create_with_lost_response_is_found_by_description(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped, refusal(500, f"CT {VMID} already exists on node 'pve'"))
    pve.script("GET", f"{CT}/config", data({"description": "pod of uid 42\n", "lock": "create"}))
    pve.script("GET", "/nodes/pve/tasks", LISTED)

    assert str(await api.create_ct(SPEC)) == TASK

    assert pve.count("POST", "/nodes/pve/lxc") == 1


async def test_create_that_was_processed_before_it_was_sent_again_is_found(
    pve: ScriptedPve, api: ProxmoxApi
) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped, refusal(500, f"CT {VMID} already exists on node 'pve'"))
    pve.script("GET", f"{CT}/config", NO_CT, data({"description": "pod of uid 42\n"}))
    pve.script("GET", "/nodes/pve/tasks", LISTED)

    assert str(await api.create_ct(SPEC)) == TASK


@pytest.mark.parametrize(
    ("lost", "second"),
    [
        (dropped, refusal(500, "unable to activate storage 'local' - directory '/x' is unreachable")),
        (dropped, dropped),
        # pvedaemon continues with a request for whose response pveproxy has waited 30 s.
        (refusal(596, "Connection timed out"), refusal(596, "Connection timed out")),
    ],
)
async def test_create_that_may_still_be_processed_is_told_apart(
    pve: ScriptedPve, api: ProxmoxApi, lost: Step, second: Step
) -> None:
    pve.script("POST", "/nodes/pve/lxc", lost, second)
    pve.script("GET", f"{CT}/config", NO_CT)

    with pytest.raises(CreateUnanswered, match="create CT 900001"):
        await api.create_ct(SPEC)

    assert pve.count("POST", "/nodes/pve/lxc") == 2


async def test_create_is_not_sent_again_while_nobody_knows_whether_there_is_a_ct(
    pve: ScriptedPve, api: ProxmoxApi
) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped)
    pve.script("GET", f"{CT}/config", refusal(595, "Connection refused"))

    with pytest.raises(CreateUnanswered):
        await api.create_ct(SPEC)

    assert pve.count("POST", "/nodes/pve/lxc") == 1


async def test_foreign_ct_is_never_taken_for_ours(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped)
    pve.script("GET", f"{CT}/config", data({"description": "somebody's database"}))
    pve.script("GET", "/nodes/pve/tasks", LISTED)

    with pytest.raises(CtExists):
        await api.create_ct(SPEC)


async def test_locked_ct_is_retried(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("PUT", f"{CT}/config", LOCKED, data(None))
    pve.script("GET", f"{CT}/config", data({"lock": "backup"}), data({}))

    await api.configure_ct(VMID, memory=64)

    assert pve.count("PUT", f"{CT}/config") == 2


async def test_lock_error_of_a_task_is_retried_without_another_task(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", f"{CT}/status/stop", data(TASK))
    pve.script("GET", f"{CT}/config", data({"lock": "backup"}), data({}))
    pve.script("GET", f"{TASK_PATH}/status", ended("CT is locked (backup)"), ended("OK"))

    await api.stop_ct(VMID)

    assert pve.count("POST", f"{CT}/status/stop") == 2


async def test_locked_ct_times_out(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("DELETE", CT, LOCKED)
    pve.script("GET", f"{CT}/config", data({"lock": "backup"}))

    with pytest.raises(CtLocked, match=f"destroy CT {VMID}: CT is locked"):
        await api.destroy_ct(VMID)


@pytest.mark.parametrize("message", ["CT is locked (backup)", "can't lock file '/run/lock/x' - got timeout"])
async def test_lock_that_stays_is_an_error_before_the_task_timeout(
    pve: ScriptedPve, api: ProxmoxApi, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr("pvecri.proxmox.api.HELD_LOCK_TIMEOUT", 0.0)
    pve.script("DELETE", CT, data(TASK))
    pve.script("GET", f"{CT}/config", data({}))
    pve.script("GET", f"{TASK_PATH}/status", ended(message))

    with pytest.raises(CtLocked):
        await api.destroy_ct(VMID)

    assert pve.count("DELETE", CT) == 1


async def test_stop_of_a_stopped_ct_is_no_error(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", f"{CT}/status/stop", dropped, refusal(500, f"CT {VMID} not running"))

    await api.stop_ct(VMID)


async def test_request_is_confirmed_again_after_a_lock_and_after_a_lost_response(
    pve: ScriptedPve, api: ProxmoxApi
) -> None:
    pve.script("DELETE", CT, LOCKED, dropped, data(TASK))
    pve.script("GET", f"{CT}/config", data({}))
    asked: list[int] = []

    async def confirm() -> None:
        asked.append(pve.count("DELETE", CT))

    await api.destroy_ct(VMID, confirm)

    assert asked == [0, 1, 2]


@pytest.mark.parametrize("first", [LOCKED, dropped])
async def test_request_that_is_not_confirmed_again_is_not_repeated(
    pve: ScriptedPve, api: ProxmoxApi, first: Step
) -> None:
    pve.script("DELETE", CT, first, data(TASK))
    pve.script("GET", f"{CT}/config", data({}))

    async def confirm() -> None:
        if pve.count("DELETE", CT):
            raise PermissionDenied("it is another's now")

    with pytest.raises(PermissionDenied, match="another's"):
        await api.destroy_ct(VMID, confirm)
    assert pve.count("DELETE", CT) == 1


@pytest.mark.parametrize(
    ("kinds", "replaced"),
    [
        ([], False),
        (["vzcreate", "vzstart", "vzstop"], False),
        (["vzdestroy", "vzcreate"], False),
        (["vzcreate", "vzdestroy"], True),
        (["vzcreate", "vzrestore", "vzstart"], True),
        (["vzcreate", "failed vzrestore"], False),
    ],
)
async def test_ct_is_replaced_by_a_destroy_or_restore_after_its_create(
    pve: ScriptedPve, api: ProxmoxApi, kinds: list[str], replaced: bool
) -> None:
    entries = []
    for number, kind in enumerate(kinds):
        upid = TASK.replace("00009CE0", f"0000{number:04X}").replace("vzcreate", kind.split()[-1])
        # The list may show an ended task as RUNNING.
        entries.append(
            {"upid": upid, "type": kind.split()[-1], "starttime": 7, "pstart": number, "status": "RUNNING"}
        )
        exitstatus = "no space" if "failed" in kind else "OK"
        pve.script("GET", f"/nodes/pve/tasks/{quote(upid, safe='')}/status", ended(exitstatus))
    pve.script("GET", "/nodes/pve/tasks", data(entries))

    assert (await api.replaced_by(VMID) is not None) == replaced


@pytest.mark.parametrize(
    ("status", "runs"),
    [(None, False), ({"status": "running"}, True), ({"status": "stopped", "exitstatus": "OK"}, False)],
)
async def test_create_of_a_vmid_runs_until_its_task_has_ended(
    pve: ScriptedPve, api: ProxmoxApi, status: dict[str, str] | None, runs: bool
) -> None:
    entries = [] if status is None else [{"upid": TASK, "type": "vzcreate", "starttime": 7}]
    pve.script("GET", "/nodes/pve/tasks", data(entries))
    pve.script("GET", f"/nodes/pve/tasks/{quote(TASK, safe='')}/status", data({"upid": TASK, **(status or {})}))

    assert await api.create_runs(VMID) is runs


@pytest.mark.parametrize(
    ("happened", "replaced"),
    [
        # (kind, starttime, endtime, ticks), in the order in which it happened.
        ([("vzcreate", 3600, 3605, 100), ("vzdestroy", 3700, 3702, 200), ("vzcreate", 200, 205, 300)], False),
        ([("vzcreate", 3600, 3605, 100), ("vzrestore", 100, 109, 200)], True),
        ([("vzcreate", 3600, 3605, 100), ("vzdestroy", 100, 103, 200)], True),
        ([("vzdestroy", 3600, 3605, 90000), ("vzcreate", 100, 103, 10)], False),  # and a reboot
    ],
)
async def test_tasks_are_in_order_when_the_nodes_clock_was_set_back(
    pve: ScriptedPve, api: ProxmoxApi, happened: list[tuple[str, int, int, int]], replaced: bool
) -> None:
    entries = []
    for kind, start, end, ticks in happened:
        upid = TASK.replace("00009CE0", f"{ticks:08X}").replace("vzcreate", kind)
        entries.append({"upid": upid, "type": kind, "starttime": start, "endtime": end, "pstart": ticks})
        pve.script("GET", f"/nodes/pve/tasks/{quote(upid, safe='')}/status", ended("OK"))
    pve.script("GET", "/nodes/pve/tasks", data(entries[::-1]))

    assert (await api.replaced_by(VMID) is not None) == replaced


def test_tasks_that_were_archived_at_once_are_listed_in_the_wrong_order() -> None:
    def task(kind: str, ticks: int, end: int | None) -> TaskEntry:
        return TaskEntry(upid=f"UPID:{ticks}", type=kind, starttime=7, endtime=end, pstart=ticks)

    listed = [
        task("vzstop", 50, None),
        task("vzstart", 60, None),
        task("vzdestroy", 30, 101),
        task("vzcreate", 40, 100),
        task("vzcreate", 10, 90),
    ]

    assert [entry.pstart for entry in newest_first(listed)] == [60, 50, 40, 30, 10]


def test_polling_starts_soon_and_slows_down_to_a_second() -> None:
    delays = [delay for delay, _ in zip(POLL.delays(), range(20), strict=False)]

    assert delays[0] == POLL.first
    assert all(before <= after for before, after in pairwise(delays))
    assert delays[-1] == POLL.maximum == 1.0


async def test_a_storages_config_is_found_by_its_name(pve: ScriptedPve, api: ProxmoxApi) -> None:
    listed = [
        {
            "storage": "local",
            "type": "dir",
            "path": "/var/lib/vz",
            "content": "vztmpl",
            "shared": 0,
            "digest": "x",
        },
        {"storage": "fast", "type": "zfspool", "pool": "rpool/data", "sparse": 1, "mountpoint": "/rpool/data"},
    ]
    pve.script("GET", "/storage", data(listed), data(listed))
    found = await api.storage_config("fast")
    assert (found.type, found.pool, found.path) == ("zfspool", "rpool/data", "")
    with pytest.raises(NotFound, match=r"storage slow .*Datastore\.AllocateSpace"):
        await api.storage_config("slow")


OFFLINE = data({"type": "nfs", "content": "rootdir", "active": 0, "enabled": 1})
NO_STORAGE = refusal(400, "Parameter verification failed.", {"storage": "No such storage."})


@pytest.mark.parametrize(("answer", "problem"), [(OFFLINE, "is offline"), (NO_STORAGE, "does not exist")])
async def test_root_filesystem_on_a_storage_that_cannot_be_used_is_unavailable(
    pve: ScriptedPve, api: ProxmoxApi, answer: Step, problem: str
) -> None:
    pve.script("GET", f"{CT}/config", data({"rootfs": "nas:900001/subvol-900001-disk-0.subvol,size=0T"}))
    pve.script("GET", "/nodes/pve/storage/nas/status", answer)

    with pytest.raises(Unavailable, match=f"destroy CT {VMID}: .* storage nas {problem}"):
        await rootfs_storage.check(api, VMID)


async def test_root_filesystem_on_a_storage_that_cannot_be_read_is_not_checked(
    pve: ScriptedPve, api: ProxmoxApi
) -> None:
    pve.script("GET", f"{CT}/config", data({"rootfs": "nas:900001/subvol-900001-disk-0.subvol,size=0T"}))
    pve.script("GET", "/nodes/pve/storage/nas/status", refusal(403, "Permission check failed (/storage/nas, …)"))

    await rootfs_storage.check(api, VMID)


# -- an account with rights on a pool only ---------------------------------------------------------------------

FORBIDDEN = refusal(403, f"Permission check failed (/vms/{VMID}, VM.Audit)")
FREE = data(str(VMID))
TAKEN = refusal(400, "Parameter verification failed.", {"vmid": f"VM {VMID} already exists"})
SEEN = data([{"vmid": VMID, "node": "pve", "type": "lxc"}])


async def test_missing_ct_differs_from_forbidden_ct(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("GET", f"{CT}/config", FORBIDDEN)
    pve.script("POST", f"{CT}/status/stop", FORBIDDEN)
    pve.script("DELETE", CT, FORBIDDEN)
    pve.script("GET", "/cluster/nextid", FREE)

    with pytest.raises(CtNotFound):
        await api.ct_config(VMID)
    await api.stop_ct(VMID)
    await api.destroy_ct(VMID)


async def test_a_ct_of_which_a_privilege_is_missing_is_forbidden(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("DELETE", CT, FORBIDDEN)
    pve.script("GET", "/cluster/nextid", TAKEN)
    pve.script("GET", "/cluster/resources", SEEN)

    with pytest.raises(PermissionDenied, match=r"VM\.Audit"):
        await api.destroy_ct(VMID)
    assert pve.count("DELETE", CT) == 1


async def test_a_ct_that_is_being_created_is_waited_for(pve: ScriptedPve, api: ProxmoxApi) -> None:
    """It joins its pool only at the end; to an account that sees it anyway it is locked."""
    locked = data({"lock": "create"})
    pve.script("GET", f"{CT}/config", FORBIDDEN, locked, data({"description": "pod of uid 42"}))
    pve.script("GET", "/cluster/nextid", TAKEN)
    pve.script("GET", "/cluster/resources", data([]))

    assert (await api.idle_ct_config(VMID)).description == "pod of uid 42"


async def test_a_ct_that_is_being_destroyed_is_waited_for(pve: ScriptedPve, api: ProxmoxApi) -> None:
    """Its config loses all but a lock, then it leaves its pool, and only then the VMID is free."""
    pve.script("GET", f"{CT}/config", data({"lock": "destroyed"}), FORBIDDEN, FORBIDDEN)
    pve.script("GET", "/cluster/nextid", TAKEN, FREE)
    pve.script("GET", "/cluster/resources", data([]))

    with pytest.raises(CtNotFound):
        await api.idle_ct_config(VMID)


async def test_the_rest_of_a_destroy_that_failed_is_locked(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("GET", f"{CT}/config", data({"lock": "destroyed"}))

    with pytest.raises(CtLocked, match=r"CT is locked \(destroyed\)"):
        await api.idle_ct_config(VMID, timeout=0)


async def test_error_for_a_hidden_ct_names_the_pool(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("GET", f"{CT}/config", FORBIDDEN)
    pve.script("GET", "/cluster/nextid", TAKEN)
    pve.script("GET", "/cluster/resources", data([]))

    with pytest.raises(Unavailable, match=r"CT 900001 exists, but our account does not see it: .*proxmox\.pool"):
        await api.idle_ct_config(VMID)


async def test_account_without_vm_audit_is_refused_at_once(pve: ScriptedPve, api: ProxmoxApi) -> None:
    pve.script("POST", f"{CT}/status/stop", FORBIDDEN)
    pve.script("GET", "/cluster/nextid", TAKEN)
    pve.script("GET", "/cluster/resources", data([]))
    pve.script("GET", "/access/permissions", data({"/vms": {"VM.PowerMgmt": 1}}))

    with pytest.raises(PermissionDenied, match=r"stop CT 900001: .*VM\.Audit"):
        await api.stop_ct(VMID)
    assert pve.count("POST", f"{CT}/status/stop") == 1


async def test_create_with_lost_response_is_found_after_joining_its_pool(
    pve: ScriptedPve, api: ProxmoxApi
) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped)
    pve.script("GET", f"{CT}/config", FORBIDDEN, data({"description": "pod of uid 42"}))
    pve.script("GET", "/cluster/nextid", TAKEN)
    pve.script("GET", "/cluster/resources", data([]))
    pve.script("GET", "/nodes/pve/tasks", LISTED)

    assert str(await api.create_ct(SPEC)) == TASK
    assert pve.count("POST", "/nodes/pve/lxc") == 1


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (data({"status": "running"}), None),
        (ended("OK"), None),
        (ended("WARNINGS: 1"), None),
        (ended("startup for container '900001' failed"), "startup for container '900001' failed ["),
    ],
)
async def test_failed_start_is_read_from_the_task_not_from_the_list(
    pve: ScriptedPve, api: ProxmoxApi, status: Step, why: str | None
) -> None:
    """The list says RUNNING of active tasks, and for a while of ended ones."""
    start = TASK.replace("vzcreate", "vzstart")
    listed = {"upid": start, "type": "vzstart", "starttime": 1795443228, "status": "RUNNING"}
    pve.script("GET", "/nodes/pve/tasks", data([listed]))
    pve.script("GET", f"{TASK_PATH.replace('vzcreate', 'vzstart')}/status", status)
    pve.script("GET", f"{TASK_PATH.replace('vzcreate', 'vzstart')}/log", data([{"n": 1, "t": "why"}]))

    failure = await api.failed_start(VMID)

    assert failure is None if why is None else (failure or "").startswith(why)
