# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded node refuses, waits and lags as Proxmox does; differences would hide errors of the daemon."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from pve_replay.process import VMIDS, Login, NodeProcess, new_state_dir
from pve_replay.sandbox_template import write_template

from pvecri_embedded.lxc.cgroup import MIB

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="starts CTs: needs root"),
    pytest.mark.skipif(not Path("/usr/bin/lxc-start").exists(), reason="starts CTs: needs LXC"),
]

VMID = VMIDS[0]
CT = f"/nodes/pve/lxc/{VMID}"
MISSING = f"Configuration file 'nodes/pve/lxc/{VMID}.conf' does not exist"
PARAMETERS = {
    "vmid": VMID, "ostemplate": "local:vztmpl/sandbox_1.0.tar.gz", "rootfs": "local:0", "hostname": "sandbox",
    "memory": 64, "swap": 0, "ostype": "unmanaged",
}  # fmt: skip


async def create(node: NodeProcess, **options: Any) -> None:
    await node.task("POST", "/nodes/pve/lxc", PARAMETERS | options)


# -- tasks ----------------------------------------------------------------------------------------------------


async def test_running_task_is_listed_as_active_with_the_status_running(node: NodeProcess) -> None:
    await create(node)
    await node.fault({"task": "vzstart", "hold": True})
    upid = await node.ask("POST", f"{CT}/status/start")

    for source in ("all", "active"):
        listed = await node.listed(upid, source)
        assert listed is not None
        assert (listed["status"], listed["user"]) == ("RUNNING", node.root.tokenid)
        assert "endtime" not in listed
    assert await node.listed(upid, "archive") is None

    await node.clear_faults()
    assert (await node.ended(upid))[0] == "OK"
    archived = await node.listed(upid, "archive")
    assert archived is not None
    assert (archived["status"], archived["user"], archived["tokenid"]) == ("OK", "root@pam", "embedded")


async def test_start_that_follows_a_create_is_listed_as_running_until_another_worker_is_forked(
    node: NodeProcess,
) -> None:
    await node.fault({"task": "vzstart", "hold": True})
    await create(node, start=1)
    upid = await node.latest(VMID, "vzstart")
    await node.clear_faults()
    assert (await node.ended(upid))[0] == "OK"

    listed = await node.listed(upid, "all")
    assert listed is not None
    assert listed["status"] == "RUNNING"

    await node.ask("POST", f"{CT}/status/stop")
    assert await node.listed(upid, "active") is None
    listed = await node.listed(upid, "all")
    assert listed is not None
    assert listed["status"] == "OK"


async def test_log_of_a_task_that_does_not_exist_says_so_in_its_first_line(node: NodeProcess) -> None:
    upid = "UPID:pve:00001234:00005678:5F000000:vzstart:203:root@pam:"
    log = await node.get(f"/nodes/pve/tasks/{upid}/log")
    assert log == [{"n": 1, "t": "unable to open file - No such file or directory"}]


async def test_aborted_create_is_interrupted_and_leaves_nothing() -> None:
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--task-times", "create=60") as node:
            await node.upload(write_template(state_dir / "sandbox_1.0.tar.gz"))
            upid = await node.ask("POST", "/nodes/pve/lxc", PARAMETERS)
            await node.until(lambda: node.logs(upid, "Total bytes read"))
            await node.ask("DELETE", f"/nodes/pve/tasks/{upid}")
            assert (await node.ended(upid))[0] == f"unable to create CT {VMID} - received interrupt"
            assert await node.refusal("GET", f"{CT}/config") == (500, MISSING)
            assert await node.get("/nodes/pve/storage/local/content?content=rootdir") == []


async def test_task_whose_worker_was_killed_has_unexpected_status(node: NodeProcess) -> None:
    await create(node)
    await node.fault({"task": "vzstart", "hold": True})
    upid = await node.ask("POST", f"{CT}/status/start")
    await node.kill()
    await node.begin()
    assert (await node.ended(upid))[0] == "unexpected status"


# -- locks ----------------------------------------------------------------------------------------------------


async def test_config_is_locked_as_long_as_a_task_of_the_ct_runs(node: NodeProcess) -> None:
    await create(node)
    await node.fault({"task": "vzstart", "hold": True})
    await node.ask("POST", f"{CT}/status/start")
    change = asyncio.create_task(node.ask("PUT", f"{CT}/config", {"hostname": "other"}))
    destroy = await node.ask("DELETE", CT)
    assert (await node.get(f"{CT}/config"))["hostname"] == "sandbox"
    assert not change.done()

    await node.clear_faults()
    await change
    assert (await node.get(f"{CT}/config"))["hostname"] == "other"
    assert (await node.ended(destroy))[0] == f"unable to destroy CT {VMID} - container is running"


async def test_waiting_for_a_config_lock_times_out(node: NodeProcess) -> None:
    await create(node)
    await node.fault({"task": "vzstart", "hold": True})
    await node.ask("POST", f"{CT}/status/start")
    refused = asyncio.create_task(node.refusal("PUT", f"{CT}/config", {"hostname": "other"}))
    exitstatus, _ = await node.failed_task("DELETE", CT)
    locked = f"can't lock file '/run/lock/lxc/pve-config-{VMID}.lock' - got timeout"
    assert exitstatus == locked
    assert await refused == (500, locked)


async def test_ct_that_is_being_created_cannot_be_destroyed(node: NodeProcess) -> None:
    await node.fault({"task": "vzcreate", "hold": True})
    upid = await node.ask("POST", "/nodes/pve/lxc", PARAMETERS)
    assert await node.refusal("DELETE", CT) == (500, "CT is locked (create)")
    await node.clear_faults()
    assert (await node.ended(upid))[0] == "OK"


async def test_task_that_waited_for_the_lock_of_a_destroyed_ct_fails(node: NodeProcess) -> None:
    await create(node)
    await node.fault({"task": "vzdestroy", "hold": True})
    destroy = await node.ask("DELETE", CT)
    change = asyncio.create_task(node.refusal("PUT", f"{CT}/config", {"hostname": "other"}))
    start = await node.ask("POST", f"{CT}/status/start")
    await node.clear_faults()
    assert (await node.ended(destroy))[0] == "OK"
    assert await change == (500, MISSING)
    assert (await node.ended(start))[0] == MISSING
    assert not list(node.state_dir.glob(f"pve/nodes/pve/lxc/{VMID}.conf"))


async def test_start_of_a_ct_that_another_task_has_started_waits_for_a_change_of_its_state(
    node: NodeProcess,
) -> None:
    await create(node)
    await node.fault({"task": "vzstart", "hold": True})
    first = await node.ask("POST", f"{CT}/status/start")
    second = await node.ask("POST", f"{CT}/status/start")
    await node.clear_faults()
    assert (await node.ended(first))[0] == "OK"
    assert await node.runs(second)
    exitstatus, log = await node.ended(second)
    assert exitstatus == "OK"
    assert log[0] == "problem with monitor socket, but continuing anyway: got timeout"
    assert await node.refusal("POST", f"{CT}/status/start") == (500, f"CT {VMID} already running")


async def test_interrupted_destroy_leaves_a_locked_config() -> None:
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--task-times", "destroy=5") as node:
            await node.upload(write_template(state_dir / "sandbox_1.0.tar.gz"))
            await create(node)
            upid = await node.ask("DELETE", CT)
            await node.until(lambda: node.config_says(VMID, "lock", "destroyed"))
            assert await node.get("/nodes/pve/storage/local/content?content=rootdir") == []
            await node.kill()
            await node.begin()
            assert (await node.ended(upid))[0] == "unexpected status"

            assert (await node.get(f"{CT}/config")).keys() == {"lock", "digest"}
            status = await node.get(f"{CT}/status/current")
            assert (status["status"], status["lock"], status["name"]) == ("stopped", "destroyed", f"CT{VMID}")
            assert (status["maxmem"], status["maxswap"], status["maxdisk"]) == (512 * MIB, 0, 4096 * MIB)
            locked = (500, "CT is locked (destroyed)")
            assert await node.refusal("DELETE", f"{CT}?force=1") == locked
            assert await node.refusal("PUT", f"{CT}/config", {"hostname": "other"}) == locked
            assert await node.refusal("PUT", f"{CT}/config", {"delete": "lock"}) == locked
            assert (await node.failed_task("POST", f"{CT}/status/start"))[0] == locked[1]
            taken = (500, f"CT {VMID} already exists on node 'pve'")
            assert await node.refusal("POST", "/nodes/pve/lxc", PARAMETERS) == taken


# -- rights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "privileges"),
    [
        ("GET", "config", "VM.Audit"),
        ("GET", "status/current", "VM.Audit"),
        ("GET", "interfaces", "VM.Audit"),
        ("POST", "status/start", "VM.PowerMgmt"),
        ("POST", "status/stop", "VM.PowerMgmt"),
        (
            "PUT", "config?memory=64",
            "VM.Config.Disk|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.Options",
        ),
        ("DELETE", "", "VM.Allocate"),
    ],
)  # fmt: skip
async def test_missing_ct_is_403_without_rights_on_vms(
    node: NodeProcess, account: Login, method: str, path: str, privileges: str
) -> None:
    with node.asked_as(account):
        refused = await node.refusal(method, f"{CT}/{path}".rstrip("/"))
    assert refused == (403, f"Permission check failed (/vms/{VMID}, {privileges})")


async def test_missing_ct_is_500_with_rights_on_vms(node: NodeProcess, account: Login) -> None:
    await node.ask("PUT", "/access/acl", {"path": "/vms", "users": "kube@pve", "roles": "KubePods"})
    with node.asked_as(account):
        for method, path in (("GET", f"{CT}/config"), ("PUT", f"{CT}/config?memory=64"), ("DELETE", CT)):
            assert await node.refusal(method, path) == (500, MISSING)


async def test_ct_joins_its_pool_when_its_create_ends(node: NodeProcess, account: Login) -> None:
    with node.asked_as(account):
        await node.fault({"task": "vzcreate", "hold": True})
        upid = await node.ask("POST", "/nodes/pve/lxc", PARAMETERS | {"pool": "kubernetes"})
        forbidden = (403, f"Permission check failed (/vms/{VMID}, VM.Audit)")
        assert await node.refusal("GET", f"{CT}/config") == forbidden
        assert await node.get("/nodes/pve/lxc") == []
        assert (await node.refusal("GET", f"/cluster/nextid?vmid={VMID}"))[0] == 400
        await node.clear_faults()
        assert (await node.ended(upid))[0] == "OK"
        assert (await node.get(f"{CT}/config"))["hostname"] == "sandbox"
        assert [ct["vmid"] for ct in await node.get("/nodes/pve/lxc")] == [VMID]

        await node.task("DELETE", CT)
        assert await node.refusal("GET", f"{CT}/config") == forbidden
        assert await node.get(f"/cluster/nextid?vmid={VMID}") == str(VMID)
    assert (await node.get("/pools?poolid=kubernetes"))[0]["members"] == []


async def test_tags_of_a_create_are_checked_without_the_pool(node: NodeProcess, account: Login) -> None:
    with node.asked_as(account):
        parameters = PARAMETERS | {"pool": "kubernetes"}
        refused = await node.refusal("POST", "/nodes/pve/lxc", parameters | {"tags": "pvecri"})
        assert refused == (403, f"Permission check failed (/vms/{VMID}, VM.Config.Options)")
        await node.task("POST", "/nodes/pve/lxc", parameters)
        await node.ask("PUT", f"{CT}/config", {"tags": "pvecri"})
        assert (await node.get(f"{CT}/config"))["tags"] == "pvecri"


async def test_firewall_of_a_ct_is_set_with_the_rights_on_its_pool(node: NodeProcess, account: Login) -> None:
    with node.asked_as(account):
        await node.task("POST", "/nodes/pve/lxc", PARAMETERS | {"pool": "kubernetes"})
        await node.ask("POST", f"{CT}/firewall/rules", {"type": "in", "action": "DROP", "enable": 1})
        await node.ask("PUT", f"{CT}/firewall/options", {"enable": 1})
        assert [rule["action"] for rule in await node.get(f"{CT}/firewall/rules")] == ["DROP"]
        assert (await node.get(f"{CT}/firewall/options"))["enable"] == 1


async def test_privileged_ct_needs_rights_on_the_root_path(node: NodeProcess, account: Login) -> None:
    privileged = PARAMETERS | {"pool": "kubernetes", "unprivileged": 0}
    with node.asked_as(account):
        await node.task("POST", "/nodes/pve/lxc", privileged)
        await node.task("DELETE", CT)
    taken = {"path": "/", "users": "kube@pve", "roles": "KubePrivileged", "delete": 1}
    await node.ask("PUT", "/access/acl", taken)
    with node.asked_as(account):
        refused = await node.refusal("POST", "/nodes/pve/lxc", privileged)
    assert refused == (403, "Permission check failed (/, Sys.Modify)")


async def test_rights_are_checked_before_parameters(node: NodeProcess, account: Login) -> None:
    with node.asked_as(account):
        assert (await node.refusal("PUT", f"{CT}/config?nosuch=1"))[0] == 403
        assert (await node.refusal("GET", "/nodes/pve/syslog?start=-1"))[0] == 403
    assert (await node.refusal("GET", "/nodes/pve/syslog?start=-1"))[0] == 400


async def test_nodes_are_listed_without_usage_to_accounts_without_sys_audit(
    node: NodeProcess, account: Login
) -> None:
    with node.asked_as(account):
        (item,) = await node.get("/nodes")
        assert item["mem"]
        assert (await node.refusal("GET", "/cluster/status"))[0] == 403
        await node.ask("GET", f"/cluster/nextid?vmid={VMID}")
    taken = {"path": "/nodes/pve", "users": "kube@pve", "roles": "KubeNode", "delete": 1}
    await node.ask("PUT", "/access/acl", taken)
    with node.asked_as(account):
        (item,) = await node.get("/nodes")
    assert item.keys() == {"node", "id", "status", "type", "level", "ssl_fingerprint"}


async def test_cluster_status_of_a_single_node_has_only_the_node(node: NodeProcess) -> None:
    (item,) = await node.get("/cluster/status")
    assert (item["type"], item["name"], item["nodeid"], item["local"]) == ("node", "pve", 0, 1)


async def test_start_that_follows_a_create_needs_no_right_to_start(node: NodeProcess, account: Login) -> None:
    role = await node.get("/access/roles/KubePods")
    await node.ask("PUT", "/access/roles/KubePods", {"privs": ",".join(role.keys() - {"VM.PowerMgmt"})})
    with node.asked_as(account):
        await node.task("POST", "/nodes/pve/lxc", PARAMETERS | {"pool": "kubernetes", "start": 1})
        await node.until(lambda: node.status_is(VMID, "running"))
        refused = await node.refusal("POST", f"{CT}/status/stop")
    assert refused == (403, f"Permission check failed (/vms/{VMID}, VM.PowerMgmt)")


async def test_response_to_invalid_credentials_is_delayed(node: NodeProcess) -> None:
    wrong = {"username": "root@pam", "password": "wrong"}
    with node.asked_as(Login(node.root.tokenid, "wrong")):
        token = asyncio.create_task(node.refusal("GET", "/version"))
        password = asyncio.create_task(node.refusal("POST", "/access/ticket", wrong))
        await asyncio.sleep(0)  # until both have taken their credentials
    for _ in range(50):
        await node.get("/version")
    assert not token.done()
    assert not password.done()
    assert await token == (401, "Authentication failed!")
    assert await password == (401, "authentication failure")


async def test_upload_without_the_privilege_is_refused_without_a_body(node: NodeProcess) -> None:
    await node.ask("POST", "/access/users", {"userid": "ann@pve"})
    secret = (await node.ask("POST", "/access/users/ann@pve/token/t", {"privsep": 0}))["value"]
    with node.asked_as(Login("ann@pve!t", secret)):
        status, reason, body = await node.send("POST", "/nodes/pve/storage/local/upload", {})
    assert (status, reason) == (403, "Permission check failed (/storage/local, Datastore.AllocateTemplate)")
    assert body == ""


# -- connections -----------------------------------------------------------------------------------------------


async def test_connection_is_closed_after_100_requests(node: NodeProcess) -> None:
    answers = [await node.headers("GET", "/version") for _ in range(200)]
    closed = [number for number, headers in enumerate(answers, 1) if headers.get("Connection") == "close"]
    assert len(closed) == 2
    assert closed[1] - closed[0] == 100


async def test_large_body_is_refused_unless_it_is_an_upload(node: NodeProcess) -> None:
    refused = await node.refusal("PUT", f"{CT}/config", {"description": "x" * 600_000})
    assert refused == (501, "for data too large")


# -- what the cluster knows ------------------------------------------------------------------------------------


async def resource(node: NodeProcess) -> dict[str, Any]:
    (item,) = await node.get("/cluster/resources?type=vm")
    return dict(item)


async def test_cluster_resources_list_new_cts_at_once_and_their_status_later(node: NodeProcess) -> None:
    await create(node, tags="pvecri")
    assert await resource(node) == {
        "id": f"lxc/{VMID}", "type": "lxc", "node": "pve", "vmid": VMID, "status": "unknown", "tags": "pvecri",
    }  # fmt: skip

    async def is_published() -> bool:
        return bool((await resource(node))["status"] != "unknown")

    await node.until(is_published)
    await node.task("POST", f"{CT}/status/start")
    assert await node.status_is(VMID, "running")
    item = await resource(node)
    assert (item["status"], item["name"], item["uptime"]) == ("stopped", "sandbox", 0)

    await node.task("DELETE", f"{CT}?force=1")
    assert await node.get("/cluster/resources?type=vm") == []
    await create(node, hostname="another")
    assert (await resource(node))["name"] == "sandbox"


async def test_pool_of_a_ct_needs_pool_audit(node: NodeProcess, account: Login) -> None:
    with node.asked_as(account):
        await node.task("POST", "/nodes/pve/lxc", PARAMETERS | {"pool": "kubernetes"})
        assert "pool" not in await resource(node)
    assert (await resource(node))["pool"] == "kubernetes"


# -- root's own ------------------------------------------------------------------------------------------------


async def test_rootfs_may_be_a_directory_of_the_node_if_root_says_so(node: NodeProcess) -> None:
    root = node.state_dir / "elsewhere"
    with node.asked_as(await node.root_ticket()):
        failed = await node.failed_task("POST", "/nodes/pve/lxc", PARAMETERS | {"rootfs": str(root)})
        assert failed[0] == f"unable to create CT {VMID} - directory '{root}' does not exist"
        root.mkdir()
        await create(node, rootfs=str(root))
        await node.task("POST", f"{CT}/status/start")
        refused = await node.refusal("PUT", f"{CT}/resize", {"disk": "rootfs", "size": "+1G"})
        assert refused == (500, f"unable to parse volume ID '{root}'")
        await node.task("DELETE", f"{CT}?force=1")
    assert (root / "sbin/init").exists()


async def test_roots_token_lacks_the_rights_reserved_for_root(node: NodeProcess) -> None:
    for options, why in (
        ({"rootfs": "/tmp"}, "mount point type bind is only allowed for root@pam"),
        ({"hookscript": "local:snippets/x"}, "changing the hookscript is only allowed for root@pam"),
    ):
        refused = await node.refusal("POST", "/nodes/pve/lxc", PARAMETERS | options)
        assert refused == (403, f"Permission check failed ({why})")


# -- leftovers ------------------------------------------------------------------------------------------------


async def test_destroy_leaves_proxmoxs_leftovers_and_the_vmid_can_be_reused(node: NodeProcess) -> None:
    await create(node)
    await node.task("POST", f"{CT}/status/start")
    await node.task("DELETE", f"{CT}?force=1")
    left = node.lxc_path / str(VMID)
    assert {path.name for path in left.iterdir()} == {"passthrough", "rules.seccomp"}
    await create(node)
    await node.task("POST", f"{CT}/status/start")


# -- time -----------------------------------------------------------------------------------------------------


async def test_ct_runs_before_its_start_task_ends_with_task_times() -> None:
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--task-times", "start=4") as node:
            await node.upload(write_template(state_dir / "sandbox_1.0.tar.gz"))
            await create(node)
            upid = await node.ask("POST", f"{CT}/status/start")
            assert await node.status_is(VMID, "stopped")
            await node.until(lambda: node.status_is(VMID, "running"))
            assert await node.runs(upid)
            assert (await node.ended(upid))[0] == "OK"
