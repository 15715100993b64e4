# SPDX-License-Identifier: Apache-2.0
"""CTs that look like pods' and are an operator's, such as clones and restored backups: none is destroyed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine, forget_pods
from support.machine_node import EmbeddedNode
from support.processes import SOURCES

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts

OUTSIDE = 1000
"""Added to a VMID of the tests: outside of proxmox.vmid_range."""


@pytest.fixture(autouse=True)
def _operators_cts(machine: Machine, embedded: EmbeddedNode) -> Iterator[None]:
    """Removes the backups, and the CTs outside of the range, which the machine does not look after."""
    yield
    embedded.start()
    for backup in (embedded.state_dir / "storage/local/dump").iterdir():
        backup.unlink()
    for vmid in machine.node.cts() - set(machine.vmids):
        machine.node.remove_ct(vmid)


def pool_of(machine: Machine) -> str:
    """The daemon's: its account sees no other CTs."""
    assert isinstance(machine.node, EmbeddedNode)
    return machine.node.account.pool


def clone(machine: Machine, vmid: int, newid: int) -> None:
    """As with the button Clone of Proxmox's UI, by an administrator."""
    pool = pool_of(machine)
    machine.node.task("POST", f"/lxc/{vmid}/clone", newid=newid, pool=pool, full=1)


def back_up(machine: Machine, vmid: int) -> str:
    """As with the button Backup now; the backup's volume id."""
    machine.node.task("POST", "/vzdump", vmid=vmid, storage="local", mode="suspend", compress="gzip")
    listed = machine.node.request("GET", f"/nodes/{machine.node.name}/storage/local/content?content=backup")
    assert isinstance(listed, list)
    [backup] = listed
    return str(backup["volid"])


def restore(machine: Machine, backup: str, vmid: int, **options: object) -> None:
    """As with the button Restore."""
    machine.node.task("POST", "/lxc", **restoring(machine, backup, vmid, **options))


def restoring(machine: Machine, backup: str, vmid: int, **options: object) -> dict[str, object]:
    pool = pool_of(machine)
    return {"vmid": vmid, "ostemplate": backup, "restore": 1, "storage": "local", "pool": pool, **options}


def stop_by_hand(machine: Machine, cri: CriClient, pod: str) -> None:
    machine.node.task("POST", f"/lxc/{cri.vmid(pod)}/status/stop")
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is not ready")


def foreign(machine: Machine) -> dict[int, str]:
    """The reasons of the foreign CTs that CRI Status lists, by VMID."""
    info = machine.client.runtime.Status(pb.StatusRequest(verbose=True)).info["foreignCts"]
    return {each["vmid"]: each["reason"] for each in json.loads(info)}


def reported_after_restart(machine: Machine, vmid: int) -> str:
    """The reason for which the next daemon reports a CT, after it has cleaned up."""
    machine.wait_for_removals()
    machine.restart()
    eventually(lambda: vmid in foreign(machine), f"CT {vmid} is reported")
    # The next pod's removal comes after the first clean-up.
    machine.client.remove_pod(machine.client.run_pod())
    machine.wait_for_removals()
    assert vmid in machine.node.cts()
    return foreign(machine)[vmid]


def repair(machine: Machine, *options: str, command: str = "repair") -> subprocess.CompletedProcess[str]:
    config = str(machine.directory / "config.toml")
    return subprocess.run(
        [sys.executable, "-m", "pvecri", "--config", config, command, *options],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("distance", [1, OUTSIDE])
def test_clone_of_a_stopped_pods_ct_is_left_and_reported(
    machine: Machine, cri: CriClient, pod: str, distance: int
) -> None:
    vmid = cri.vmid(pod)
    copy = machine.vmids[-1] if distance == 1 else vmid + OUTSIDE
    cri.stop_pod(pod)
    clone(machine, vmid, copy)
    assert reported_after_restart(machine, copy) == "copy"
    machine.client.remove_pod(pod)
    machine.wait_for_removals()
    assert machine.node.cts() & {vmid, copy} == {copy}
    log = machine.daemon.log.read_text()
    assert len(re.findall(rf"WARNING .*CT {copy} .*has the notes of pod .*those of CT {vmid}", log)) == 1


def test_running_pods_ct_cannot_be_cloned_and_is_not_locked_by_the_try(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    path = f"/nodes/{machine.node.name}/lxc/{vmid}/clone"
    refused = machine.node._send("POST", path, {"newid": machine.vmids[-1], "full": 1})
    assert refused[:2] == (500, "Full clone of a running container is only possible from a snapshot")
    cri.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize("distance", [1, OUTSIDE])
def test_restored_backup_of_a_pods_ct_is_left_and_reported(
    machine: Machine, cri: CriClient, pod: str, distance: int
) -> None:
    vmid = cri.vmid(pod)
    copy = machine.vmids[-1] if distance == 1 else vmid + OUTSIDE
    restore(machine, back_up(machine, vmid), copy)
    cri.remove_pod(pod)
    assert reported_after_restart(machine, copy) == "copy"
    assert machine.node.cts() == {copy}


def test_backup_restored_over_a_stopped_pods_ct_is_left(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    backup = back_up(machine, vmid)
    stop_by_hand(machine, cri, pod)
    restore(machine, backup, vmid, force=1)
    cri.remove_pod(pod)
    assert reported_after_restart(machine, vmid) == "unknown_pod"


@pytest.mark.parametrize("started", [False, True])
def test_backup_restored_after_the_pods_ct_was_destroyed_is_left(
    machine: Machine, cri: CriClient, pod: str, started: bool
) -> None:
    """It has the VMID, the notes and the root volume of the pod's CT: only the tasks tell them apart."""
    vmid = cri.vmid(pod)
    backup = back_up(machine, vmid)
    before = machine.node.ct(vmid, "config")
    machine.kill()
    machine.node.remove_ct(vmid)
    restore(machine, backup, vmid, start=int(started))
    if started:
        eventually(lambda: machine.node.ct(vmid, "status/current")["status"] == "running", "it runs")
    after = machine.node.ct(vmid, "config")
    assert [after[name] for name in ("description", "rootfs")] == [
        before[name] for name in ("description", "rootfs")
    ]
    machine.start()
    assert machine.client.pod_status(pod).state == pb.SANDBOX_NOTREADY
    machine.client.stop_pod(pod)
    machine.client.remove_pod(pod)
    machine.wait_for_removals()
    assert machine.node.ct(vmid, "status/current")["status"] == ("running" if started else "stopped")
    assert reported_after_restart(machine, vmid) == "unknown_pod"


def test_pod_is_removed_while_a_backup_is_restored_over_its_ct(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    """The removal waits for the restore's lock, and must look at the CT again then."""
    vmid = cri.vmid(pod)
    backup = back_up(machine, vmid)
    stop_by_hand(machine, cri, pod)
    embedded.fault(task="vzrestore", hold=True)
    machine.node.request("POST", f"/nodes/{machine.node.name}/lxc", **restoring(machine, backup, vmid, force=1))
    cri.remove_pod(pod)
    assert cri.pods() == []
    embedded.clear_faults()
    assert reported_after_restart(machine, vmid) == "unknown_pod"


def test_pods_ct_that_was_converted_to_a_template_is_left(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    stop_by_hand(machine, cri, pod)
    machine.node.request("POST", f"/nodes/{machine.node.name}/lxc/{vmid}/template")
    eventually(lambda: machine.node.ct(vmid, "config").get("template") == 1, "it is a template")
    cri.remove_pod(pod)
    assert reported_after_restart(machine, vmid) == "unknown_pod"


def test_copied_config_is_left_and_its_removal_spares_the_pods_disk(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    vmid = cri.vmid(pod)
    copy = vmid + OUTSIDE
    embedded.stop()
    [config] = embedded.state_dir.glob(f"pve/nodes/*/lxc/{vmid}.conf")
    shutil.copy(config, config.with_name(f"{copy}.conf"))
    pools = json.loads((embedded.state_dir / "pve/pools.json").read_text())
    for pool in pools.values():
        pool["vmids"] += [copy] if vmid in pool["vmids"] else []
    (embedded.state_dir / "pve/pools.json").write_text(json.dumps(pools))
    embedded.start()
    eventually(machine.ready, "the runtime is ready")
    assert reported_after_restart(machine, copy) == "copy"
    assert repair(machine, "--destroy", str(copy)).returncode == 0
    assert machine.client.finish(pod, "echo", "whole") == "whole\n"


def test_cts_of_a_lost_database_are_left_until_a_person_decides(
    machine: Machine, cri: CriClient, container: str, pod: str
) -> None:
    vmid = cri.vmid(pod)
    machine.kill()
    kept = machine.directory / "kept"
    kept.mkdir()
    for path in machine.state_dir.glob("pods.db*"):
        path.rename(kept / path.name)
    machine.start()
    assert reported_after_restart(machine, vmid) == "other_installation"
    assert machine.node.ct(vmid, "status/current")["status"] == "running"

    running = repair(machine, "--destroy", str(vmid))
    assert (running.returncode, "container is running" in running.stderr) == (1, True), running.stderr
    machine.node.task("POST", f"/lxc/{vmid}/status/stop")
    done = repair(machine, "--destroy", str(vmid))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"CT {vmid} .* has the notes of pod .*\n.*destroyed", done.stdout)
    # conmon may have written its exit file while the CT was killed; what has no row is removed at the next start.
    machine.restart()
    machine.wait_until_nothing_left()
    assert machine.processes_of(container) == []


def test_cts_of_lost_rows_are_left(machine: Machine, cri: CriClient, pod: str) -> None:
    """As of a database that was restored from a backup."""
    vmid = cri.vmid(pod)
    machine.kill()
    forget_pods(machine.state_dir / "pods.db")
    machine.start()
    assert reported_after_restart(machine, vmid) == "unknown_pod"
    assert machine.node.ct(vmid, "status/current")["status"] == "running"


def test_cts_of_another_installation_are_left_and_reported(machine: Machine, cri: CriClient, pod: str) -> None:
    vmid = cri.vmid(pod)
    machine.kill()
    database = machine.state_dir / "pods.db"
    forget_pods(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        before = connection.execute("SELECT id FROM installation").fetchone()
        connection.execute("UPDATE installation SET id = 'another'")
    try:
        machine.start()
        assert reported_after_restart(machine, vmid) == "other_installation"
    finally:
        machine.kill()
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE installation SET id = ?", before)


def test_daemon_with_a_copied_state_directory_does_not_start(
    machine: Machine, cri: CriClient, pod: str, tmp_path: Path
) -> None:
    text = (machine.directory / "config.toml").read_text()
    copy = tmp_path / "state"
    copy.mkdir()
    for path in machine.state_dir.glob("pods.db*"):
        shutil.copy(path, copy)
    for setting, path in (("state_dir", copy), ("run_dir", tmp_path / "run"), ("socket", tmp_path / "cri.sock")):
        text = re.sub(rf"^{setting} = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[runtime]\n", f'[runtime]\n{setting} = "{path}"\n')
    config = tmp_path / "config.toml"
    config.write_text(text)
    second = subprocess.run(
        [sys.executable, "-m", "pvecri", "--config", str(config), "serve"],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=False,
    )
    mounts.umount_below(tmp_path)
    assert second.returncode == 1
    assert f"runtime.state_dir: {copy} is a copy of that of another pvecri" in second.stderr
    assert cri.pod_status(pod).state == pb.SANDBOX_READY


@pytest.mark.parametrize("ended", [False, True])
def test_ct_of_an_earlier_version_is_adopted_and_removed(
    machine: Machine, cri: CriClient, pod: str, ended: bool
) -> None:
    """It has neither its VMID in its notes nor a root volume in its row."""
    vmid = cri.vmid(pod)
    machine.kill()
    notes = str(machine.node.ct(vmid, "config")["description"])
    earlier = re.sub(r"CT: \d+\n\n", "", notes)
    assert earlier != notes
    machine.node.request("PUT", f"/nodes/{machine.node.name}/lxc/{vmid}/config", description=earlier)
    with closing(sqlite3.connect(machine.state_dir / "pods.db")) as connection, connection:
        [(value,)] = connection.execute("SELECT value FROM sandboxes").fetchall()
        row = json.loads(value)
        assert row.pop("ct_volume")
        connection.execute("UPDATE sandboxes SET value = ?", (json.dumps(row).encode(),))
    if ended:
        machine.node.task("POST", f"/lxc/{vmid}/status/stop")
    machine.start()
    state = pb.SANDBOX_NOTREADY if ended else pb.SANDBOX_READY
    assert machine.client.pod_status(pod).state == state
    machine.client.remove_pod(pod)
    machine.assert_nothing_left()


# -- pvecri repair -------------------------------------------------------------------------------------------


def test_repair_lists_foreign_cts_and_so_does_check_config(machine: Machine, cri: CriClient, pod: str) -> None:
    assert (repair(machine).returncode, repair(machine).stdout) == (0, "")
    copy = machine.vmids[-1]
    cri.stop_pod(pod)
    clone(machine, cri.vmid(pod), copy)
    listed, checked = repair(machine), repair(machine, command="check-config")
    assert re.fullmatch(rf"CT {copy} \(\S+\) has the notes of pod \S+/\S+, but .*\n", listed.stdout)
    assert (listed.returncode, checked.returncode) == (0, 0)
    assert f"warning: store: {listed.stdout.strip()}" in checked.stdout


def test_repair_destroys_a_copy_and_nothing_else(
    machine: Machine, embedded: EmbeddedNode, cri: CriClient, pod: str
) -> None:
    vmid, copy, operators = cri.vmid(pod), machine.vmids[-1], machine.vmids[-2]
    cri.stop_pod(pod)
    clone(machine, vmid, copy)
    embedded.make_ct(operators, pool=pool_of(machine))
    for wrong, message in ((vmid, "that of pod "), (operators, "name no pod"), (operators - 1, "does not exist")):
        done = repair(machine, "--destroy", str(wrong))
        assert done.returncode == 1, done.stdout
        assert re.search(message, done.stderr)
    assert repair(machine, "--destroy", str(copy)).returncode == 0
    assert machine.node.cts() & {vmid, copy, operators} == {vmid, operators}
