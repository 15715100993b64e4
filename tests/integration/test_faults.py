# SPDX-License-Identifier: Apache-2.0
"""Faults of the machine and unexpected input: other work continues, and everything can be removed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts

INVALID = grpc.StatusCode.INVALID_ARGUMENT
BANDWIDTH = "kubernetes.io/ingress-bandwidth"


def hidden_mount(directory: Path) -> None:
    """Mount over a mount: the lower one appears only when the upper one is unmounted."""
    (directory / "inner").mkdir(parents=True)
    mounts.mount("inner", directory / "inner", "tmpfs", 0, "size=64k")
    mounts.mount("outer", directory, "tmpfs", 0, "size=64k")


def rows(machine: Machine, table: str, directory: Path | None = None) -> dict[str, dict[str, object]]:
    """What the database of `directory`, by default the daemon's usual one, has, by id."""
    with closing(sqlite3.connect((directory or machine.state_dir) / "pods.db")) as database:
        found = database.execute(f"SELECT id, value FROM {table}").fetchall()
    return {key: json.loads(value) for key, value in found}


@contextmanager
def locked(machine: Machine) -> Iterator[None]:
    """Another program writes to the daemon's database meanwhile."""
    with closing(sqlite3.connect(machine.state_dir / "pods.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield


# -- recovery -------------------------------------------------------------------------------------------------


def test_daemon_starts_despite_a_directory_with_hidden_mounts(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    machine.kill()
    stray = machine.run_dir / "pods" / ("5" * 64)
    hidden_mount(stray)
    machine.start()
    assert [each.id for each in machine.client.pods()] == [pod]
    eventually(lambda: not stray.exists(), "the stray is removed")
    assert [each for each in mounts.mounts() if each.mountpoint.is_relative_to(stray)] == []


def test_recovery_removes_pods_with_and_without_hidden_mounts(machine: Machine, cri: CriClient) -> None:
    busy, other = cri.run_pod(cri.pod_config("busy")), cri.run_pod(cri.pod_config("other"))
    machine.kill()
    with closing(sqlite3.connect(machine.state_dir / "pods.db")) as database, database:  # as a removal begins
        for pod in (busy, other):
            value = json.dumps(rows(machine, "sandboxes")[pod] | {"phase": "removing"}).encode()
            database.execute("UPDATE sandboxes SET value = ? WHERE id = ?", (value, pod))
    hidden_mount(machine.run_dir / "pods" / busy / "late")
    machine.start()
    eventually(lambda: not machine.client.pods(), "recovery removes both")
    machine.assert_nothing_left()


# -- annotations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["1e400", "foo", "1e99999999", "9" * 5000, "-1", "1e18"])
def test_invalid_bandwidth_is_refused_before_a_ct_is_created(machine: Machine, cri: CriClient, rate: str) -> None:
    with refused(INVALID, rf"^config\.annotations\[{BANDWIDTH}\]: "):
        cri.run_pod(cri.pod_config(annotations={BANDWIDTH: rate}))
    assert rows(machine, "sandboxes") == {}
    machine.assert_nothing_left()


@pytest.mark.parametrize("rate", ["1e400", "foo"])
def test_pod_with_an_invalid_bandwidth_of_an_earlier_version_is_removed(
    machine: Machine, cri: CriClient, rate: str
) -> None:
    cri.run_pod(cri.pod_config("removing"))
    kept = cri.run_pod(cri.pod_config("stopped"))
    cri.stop_pod(kept)
    assert machine.stop() == 0
    _as_left_by_an_earlier_pvecri(machine, rate)
    machine.start()
    eventually(lambda: [each.id for each in machine.client.pods()] == [kept], "recovery removes the one")
    machine.client.remove_pod(kept)
    machine.assert_nothing_left()


def _as_left_by_an_earlier_pvecri(machine: Machine, rate: str) -> None:
    """Rows that say that the pods have a network, which was never made since the annotation could not be read."""
    for record in (machine.directory / "cni").glob("*.json"):
        record.unlink()
    with closing(sqlite3.connect(machine.state_dir / "pods.db")) as database, database:
        for key, value in rows(machine, "sandboxes").items():
            config = value["config"]
            assert isinstance(config, dict)
            config.setdefault("annotations", {})[BANDWIDTH] = rate
            value["networked"] = True
            if config["metadata"]["name"] == "removing":
                value["phase"] = "removing"
            database.execute("UPDATE sandboxes SET value = ? WHERE id = ?", (json.dumps(value).encode(), key))


# -- a database that cannot be written ------------------------------------------------------------------------


def test_a_container_that_ends_while_the_database_is_locked_is_recorded(machine: Machine, cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sh", "-c", "until [ -e /tmp/end ]; do usleep 10000; done; exit 5")
    root = Path(f"/proc/{machine.processes_of(container)[0]}/root")
    with locked(machine):
        (root / "tmp/end").touch()
        assert cri.wait_for_exit(container).exit_code == 5
        assert rows(machine, "containers")[container]["state"] == "running"
    eventually(lambda: rows(machine, "containers")[container]["state"] == "exited", "the end is stored")
    assert rows(machine, "containers")[container]["exit_code"] == 5


def test_unstored_exit_code_survives_a_crash(machine: Machine, cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sh", "-c", "until [ -e /tmp/end ]; do usleep 10000; done; exit 5")
    root = Path(f"/proc/{machine.processes_of(container)[0]}/root")
    with locked(machine):
        (root / "tmp/end").touch()
        cri.wait_for_exit(container)
        machine.kill()
    machine.start()
    assert machine.client.wait_for_exit(container).exit_code == 5


def test_pods_can_be_stopped_and_removed_while_the_database_is_locked(machine: Machine, cri: CriClient) -> None:
    pod = cri.run_pod()
    cri.run(pod, "sleep", "1000")
    with locked(machine):
        cri.stop_pod(pod)
        cri.remove_pod(pod)
        assert cri.pods() == []
        with refused(grpc.StatusCode.UNAVAILABLE, r"pods\.db cannot be written: database is locked"):
            cri.run_pod(cri.pod_config("new"))
    eventually(lambda: not rows(machine, "sandboxes"), "the rows are gone")
    machine.assert_nothing_left()


def test_status_names_the_work_that_keeps_failing_and_the_node_stays_ready(
    machine: Machine, cri: CriClient
) -> None:
    pod = cri.run_pod()
    with locked(machine):
        cri.stop_pod(pod)
        eventually(lambda: not condition(cri, "BackgroundWorkHealthy").status, "it has failed three times")
        failing = condition(cri, "BackgroundWorkHealthy")
        assert failing.reason == "BackgroundWorkFails"
        assert "pod store failed" in failing.message
        ready = condition(cri, "RuntimeReady")
        assert (ready.status, ready.message) == (True, failing.message)
        info = cri.runtime.Status(pb.StatusRequest(verbose=True)).info
        assert [each["work"] for each in json.loads(info["failing"])] == ["pod store"]
    eventually(lambda: condition(cri, "BackgroundWorkHealthy").status, "it has succeeded")
    assert condition(cri, "RuntimeReady").message == ""


@pytest.fixture
def small(machine: Machine) -> Iterator[Path]:
    """A filesystem of 8 MiB for the daemon's state."""
    directory = machine.directory / "small"
    directory.mkdir()
    mounts.mount("small", directory, "tmpfs", 0, "size=8m")
    yield directory
    mounts.umount(directory, detach=True)
    directory.rmdir()


def fill(directory: Path) -> Path:
    """Leave no byte free; the file that does it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return filler


def test_pods_can_be_stopped_and_removed_on_a_full_disk(machine: Machine, small: Path) -> None:
    state, images = f'state_dir = "{small}"', f'root = "{machine.state_dir / "images"}"'
    with machine.restarted(runtime=state, images=images) as cri:
        stays, goes = cri.run_pod(), cri.run_pod()
        container = cri.run(stays, "sh", "-c", "until [ -e /tmp/end ]; do usleep 10000; done; exit 5")
        root = Path(f"/proc/{machine.processes_of(container)[0]}/root")
        cri.run(goes, "sleep", "1000")
        filler = fill(small)
        (root / "tmp/end").touch()
        assert cri.wait_for_exit(container).exit_code == 5
        with refused(grpc.StatusCode.UNAVAILABLE, r"pods\.db cannot be written: database or disk is full"):
            cri.run_pod()
        cri.stop_pod(goes)
        cri.remove_pod(goes)
        assert [each.id for each in cri.pods()] == [stays]
        filler.unlink()
        eventually(lambda: rows(machine, "sandboxes", small).keys() == {stays}, "the row is gone")
        assert rows(machine, "containers", small)[container]["exit_code"] == 5
        machine.kill()
        machine.start(runtime=state, images=images)
        assert machine.client.status(container).exit_code == 5
        machine.client.remove_pod(stays)
    machine.assert_nothing_left()


def condition(cri: CriClient, name: str) -> pb.RuntimeCondition:
    conditions: list[pb.RuntimeCondition] = list(cri.runtime.Status(pb.StatusRequest()).status.conditions)
    return next(each for each in conditions if each.type == name)
