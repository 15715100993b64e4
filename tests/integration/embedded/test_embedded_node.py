# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded node as a process of its own, with real CTs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pve_replay.process import VMIDS, NodeProcess
from pve_replay.sandbox_template import write_template
from support.processes import SOURCES

from pvecri_embedded.lxc import command_socket
from pvecri_embedded.lxc.cgroup import MIB, CgroupTree

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="starts CTs: needs root"),
    pytest.mark.skipif(not Path("/usr/bin/lxc-start").exists(), reason="starts CTs: needs LXC"),
]

VMID = VMIDS[0]
TEMPLATE = "local:vztmpl/sandbox_1.0.tar.gz"
CT = f"/nodes/pve/lxc/{VMID}"


async def create(node: NodeProcess, **options: Any) -> None:
    """A pod sandbox's CT, started unless ``start`` says otherwise."""
    parameters = {
        "vmid": VMID, "ostemplate": TEMPLATE, "rootfs": "local:0", "hostname": "sandbox", "memory": 64,
        "swap": 0, "unprivileged": 1, "console": 0, "tty": 0, "start": 1,
    }  # fmt: skip
    parameters |= options
    await node.task("POST", "/nodes/pve/lxc", parameters)
    if parameters["start"]:
        await node.tasks_ended(f"vmid={parameters['vmid']}")


def ticks_since_boot() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


async def init_pid(node: NodeProcess) -> int:
    return int((await node.get(f"{CT}/status/current"))["pid"])


def in_ct(pid: int, *command: str) -> str:
    """Run a command in the CT's namespaces."""
    namespaces = ["nsenter", "--target", str(pid), "--all", "--", "/bin/busybox"]
    return subprocess.run([*namespaces, *command], check=True, capture_output=True, text=True).stdout


def in_netns(pid: int, *command: str) -> None:
    """Run a command of the machine in the CT's network namespace."""
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *command], check=True)


def limit(controller: str, file_v1: str, file_v2: str) -> int:
    root = Path("/sys/fs/cgroup")
    base = root if CgroupTree().unified else root / controller
    return int((base / "lxc" / str(VMID) / (file_v2 if CgroupTree().unified else file_v1)).read_text())


async def test_created_ct_runs_with_its_own_id_map_and_a_network_namespace_with_only_lo(node: NodeProcess) -> None:
    await create(node)
    pid = await init_pid(node)
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
    assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert [link["name"] for link in await node.get(f"{CT}/interfaces")] == ["lo"]
    assert in_ct(pid, "hostname").strip() == "sandbox"
    assert "catatonit" in Path(f"/proc/{pid}/cmdline").read_text()


async def test_address_set_from_outside_is_in_the_interfaces(node: NodeProcess) -> None:
    await create(node)
    pid = await init_pid(node)
    in_netns(pid, "ip", "link", "set", "lo", "up")
    (lo,) = await node.get(f"{CT}/interfaces")
    assert lo["inet"] == "127.0.0.1/8"
    assert lo["ip-addresses"][0] == {"ip-address": "127.0.0.1", "prefix": "8", "ip-address-type": "inet"}


def test_nic_is_a_veth_between_the_ct_and_its_bridge() -> None:
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "pve_replay.bridged", str(VMID)]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).resolve().parents[2]}{os.pathsep}{SOURCES}"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seen = json.loads(done.stdout)
    assert seen["names"] == ["lo", "eth0"]
    assert seen["hwaddr"] == "bc:24:11:00:00:01"
    assert seen["ports of vmbr0"] == [f"veth{VMID}i0"]
    assert seen["ports after the stop"] == []


async def test_privileged_ct_keeps_the_ids_of_the_host(node: NodeProcess) -> None:
    await create(node, unprivileged=0)
    assert Path(f"/proc/{await init_pid(node)}/uid_map").read_text().split() == ["0", "0", "4294967295"]
    assert "unprivileged" not in await node.get(f"{CT}/config")


async def test_limits_apply_from_the_start_and_can_be_changed_on_a_running_ct(node: NodeProcess) -> None:
    await create(node, cores=1)
    assert limit("memory", "memory.limit_in_bytes", "memory.max") == 64 * MIB
    await node.ask("PUT", f"{CT}/config", {"memory": 96, "cpuunits": 50, "cpulimit": 0.5, "cores": 2})
    assert limit("memory", "memory.limit_in_bytes", "memory.max") == 96 * MIB
    assert limit("cpu", "cpu.shares", "cpu.weight") in {512, 50}
    config = await node.get(f"{CT}/config")
    assert (config["memory"], config["cpulimit"]) == (96, 0.5)
    assert not [item for item in await node.get(f"{CT}/pending") if "pending" in item]
    await node.ask("PUT", f"{CT}/config", {"memory": 48, "swap": 16})
    assert limit("memory", "memory.limit_in_bytes", "memory.max") == 48 * MIB


async def test_status_shows_real_figures_of_a_running_ct(node: NodeProcess) -> None:
    await create(node)
    status = await node.get(f"{CT}/status/current")
    assert status["status"] == "running"
    assert 0 < status["mem"] < 64 * MIB
    assert status["maxmem"] == 64 * MIB
    assert status["disk"] > 0


async def test_stopped_ct_leaves_no_process_mount_or_cgroup(node: NodeProcess) -> None:
    await create(node)
    pid = await init_pid(node)
    await node.task("POST", f"{CT}/status/stop")
    assert not Path(f"/proc/{pid}").exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/lxc/{VMID}"))
    assert str(VMID) not in Path("/proc/self/mountinfo").read_text()
    assert (await node.get(f"{CT}/status/current"))["status"] == "stopped"


async def test_destroyed_ct_leaves_nothing_on_disk(node: NodeProcess) -> None:
    await create(node, start=0)
    await node.task("DELETE", f"{CT}?purge=1")
    assert not list(node.state_dir.glob(f"**/*{VMID}*"))
    assert not (node.lxc_path / str(VMID)).exists()


async def test_destroy_of_a_running_ct_needs_force(node: NodeProcess) -> None:
    await create(node)
    refused = await node.refusal("DELETE", CT)
    assert refused == (500, f"unable to destroy CT {VMID} - container is running")
    await node.task("DELETE", f"{CT}?force=1")
    assert (await node.refusal("GET", f"{CT}/config"))[1].endswith(f"{VMID}.conf' does not exist")


async def test_ct_whose_init_is_killed_is_seen_as_stopped(node: NodeProcess) -> None:
    await create(node)
    os.kill(await init_pid(node), signal.SIGKILL)
    await node.until(lambda: node.status_is(VMID, "stopped"))
    await node.task("POST", f"{CT}/status/start")
    assert await node.status_is(VMID, "running")


async def test_ct_ends_with_its_monitor_and_starts_again(node: NodeProcess) -> None:
    await create(node)
    monitor = command_socket.monitor_pid(node.lxc_path / str(VMID))
    assert monitor is not None
    pidfd = os.pidfd_open(await init_pid(node))
    os.kill(monitor, signal.SIGKILL)
    await asyncio.to_thread(node.wait_for_end_of, pidfd)
    await node.until(lambda: node.status_is(VMID, "stopped"))
    await node.task("POST", f"{CT}/status/start")


async def test_start_task_of_a_missing_init_fails_with_lxcs_error_in_its_log(
    node: NodeProcess,
) -> None:
    await create(node, start=0, entrypoint="/nosuch")
    exitstatus, log = await node.failed_task("POST", f"{CT}/status/start")
    assert exitstatus == f"startup for container '{VMID}' failed"
    assert len(log) > 1
    assert await node.status_is(VMID, "stopped")


async def test_running_cts_survive_a_restart_of_the_api(node: NodeProcess) -> None:
    await create(node, tags="k8s;pod", description="a pod\nof two lines")
    pid, config = await init_pid(node), await node.get(f"{CT}/config")
    before = json.loads((node.state_dir / "node.json").read_text())
    await node.restart()
    after = json.loads((node.state_dir / "node.json").read_text())
    for kept in ("token_secret", "fingerprint", "root_password"):
        assert after[kept] == before[kept]
    assert await init_pid(node) == pid
    assert await node.get(f"{CT}/config") == config
    assert any(task["type"] == "vzcreate" for task in await node.get(f"/nodes/pve/tasks?vmid={VMID}"))
    await node.task("POST", f"{CT}/status/stop")
    await node.task("POST", f"{CT}/status/start")


async def test_start_of_a_tasks_worker_tells_its_place_among_those_of_an_earlier_api(node: NodeProcess) -> None:
    """Not by its PID: those of later workers are smaller once kernel.pid_max is reached."""
    begin = ticks_since_boot()
    await create(node)
    await node.restart()
    await node.task("POST", f"{CT}/status/stop")
    tasks = await node.get(f"/nodes/pve/tasks?vmid={VMID}&source=all")
    by_start = sorted(tasks, key=lambda task: task["pstart"])
    assert [task["type"] for task in by_start] == ["vzcreate", "vzstart", "vzstop"]
    assert begin <= by_start[0]["pstart"] <= by_start[-1]["pstart"] <= ticks_since_boot()


async def test_ct_that_ended_without_the_api_is_stopped_after_the_restart(node: NodeProcess) -> None:
    await create(node)
    pid = await init_pid(node)
    pidfd = os.pidfd_open(pid)
    await node.end()
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(node.wait_for_end_of, pidfd)
    await node.begin()
    await node.until(lambda: node.status_is(VMID, "stopped"))


async def test_ten_cts_are_created_and_started_concurrently(node: NodeProcess) -> None:
    vmids = list(VMIDS)
    await asyncio.gather(*(create(node, vmid=vmid) for vmid in vmids))
    listed = await node.get("/nodes/pve/lxc")
    assert {ct["vmid"]: ct["status"] for ct in listed} == dict.fromkeys(vmids, "running")


async def test_sized_rootfs_is_a_filesystem_of_its_own_whose_loop_device_goes_with_the_ct(
    node: NodeProcess,
) -> None:
    await create(node, rootfs="local:0.0625")
    assert (await node.get(f"{CT}/config"))["rootfs"] == f"local:{VMID}/vm-{VMID}-disk-0.raw,size=64M"
    size = os.statvfs(f"/proc/{await init_pid(node)}/root")
    assert size.f_blocks * size.f_frsize < 64 * MIB
    await node.task("POST", f"{CT}/status/stop")
    await node.task("POST", f"{CT}/status/start")
    await node.task("DELETE", f"{CT}?force=1")
    await node.until(lambda: asyncio.to_thread(lambda: str(VMID) not in _loop_devices()))


def _loop_devices() -> str:
    return subprocess.run(["losetup", "--list"], check=True, capture_output=True, text=True).stdout


async def test_volume_mount_point_is_mounted_in_the_ct(node: NodeProcess) -> None:
    await create(node, mp0="local:0,mp=/data")
    volume = node.state_dir / f"storage/local/images/{VMID}/subvol-{VMID}-disk-1.subvol"
    (volume / "hello").touch()
    assert in_ct(await init_pid(node), "ls", "/data").split() == ["hello"]


async def test_template_with_a_path_outside_its_root_fails_the_create(
    node: NodeProcess,
) -> None:
    await node.upload(write_template(node.state_dir / "evil_1.0.tar.gz", outside="../../escaped"))
    exitstatus, _ = await node.failed_task(
        "POST",
        "/nodes/pve/lxc",
        {"vmid": VMID, "ostemplate": "local:vztmpl/evil_1.0.tar.gz", "rootfs": "local:0"},
    )
    assert exitstatus.startswith(f"unable to create CT {VMID} - ")
    assert not list(node.state_dir.glob("**/escaped"))
    assert not list(node.state_dir.glob(f"**/*{VMID}*"))


async def test_fault_fails_the_next_task_of_its_type_only(node: NodeProcess) -> None:
    await create(node, start=0)
    await node.fault({"task": "vzstart", "text": "no luck"})
    assert (await node.failed_task("POST", f"{CT}/status/start"))[0] == "no luck"
    await node.task("POST", f"{CT}/status/start")


async def test_fault_answers_the_next_request_with_its_status(node: NodeProcess) -> None:
    await node.fault({"request": "GET /version", "status": 596, "text": "Connection timed out"})
    assert await node.refusal("GET", "/version") == (596, "Connection timed out")
    assert (await node.get("/version"))["release"] == "9.2"


async def test_second_create_of_a_vmid_is_refused_while_the_first_is_under_way(node: NodeProcess) -> None:
    await node.fault({"task": "vzcreate", "hold": True})
    parameters = {"vmid": VMID, "ostemplate": TEMPLATE, "rootfs": "local:0"}
    first = await node.ask("POST", "/nodes/pve/lxc", parameters)
    assert await node.refusal("POST", "/nodes/pve/lxc", parameters) == (
        500,
        f"CT {VMID} already exists on node 'pve'",
    )
    await node.clear_faults()
    assert (await node.ended(first))[0] == "OK"
