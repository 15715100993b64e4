# SPDX-License-Identifier: Apache-2.0
"""What a test run has left on the machine. Others use it too, so only what this run can have made is looked at:

by the prefix of its directories and links, by the VMIDs that it may use, and by a mark in the environment that
every process inherits which it starts.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.existing import EXISTING, VMIDS_OF_A_RUN
from support.vmids import claim

from pvecri.config.settings import VmidRange
from pvecri.linux import cgroups, mounts, processes

RUN_ID = os.environ["PVECRI_TEST_RUN"] = os.urandom(4).hex()
"""Inherited by every process that this run starts. Each worker (pytest -n) is a run of its own."""

PREFIX = f"pvt-{RUN_ID}-"
"""How the names of this run's directories below /tmp and of its named network namespaces begin."""

LINK_PREFIX = "pvt"

_ALL_VMIDS = VmidRange(first=92_000, last=92_999) if EXISTING is None else EXISTING.settings.proxmox.vmid_range
VMIDS = claim(_ALL_VMIDS.first, _ALL_VMIDS.last, VMIDS_OF_A_RUN)
"""The VMIDs of this run's pods."""

TMP = Path("/tmp")
LXC_LOCKS = Path("/run/lxc/lock/tmp")
"""Where LXC's tools keep a lock file for each CT whose directory is below /tmp."""

LXC_PATH = Path("/var/lib/lxc")

PROXMOX_LEAVES = {"passthrough", "rules.seccomp"}
"""What Proxmox itself forgets in LXC's directory of a CT that it destroys."""


@dataclass(frozen=True)
class Before:
    """Links and shared memory that existed before a run: these do not show which run made them."""

    links: frozenset[str]
    shared_memory: frozenset[str]


def before() -> Before:
    """The current state of this network and IPC namespace."""
    return Before(frozenset(_links()), frozenset(_unattached_shared_memory()))


def of_run(directories: Iterable[Path], vmids: Iterable[int], existing: Before) -> list[str]:
    """All that is left of this run: below its directories, under its VMIDs, by its mark, and not in `existing`."""
    made = [*TMP.glob(f"{PREFIX}*"), *LXC_LOCKS.glob(f"{PREFIX}*"), *Path("/run").glob(f"{PREFIX}*")]
    roots = [*directories, *made]
    return [
        *(f"directory {path}" for path in made),
        *(f"network namespace {path}" for path in Path("/run/netns").glob(f"{PREFIX}*")),
        *_mounts(roots, vmids),
        *_loop_devices(roots),
        *_marked_processes(),
        *(f"link {name}" for name in _links() if name.startswith(LINK_PREFIX) and name not in existing.links),
        *_packet_filter_rules(),
        *(
            f"shared memory segment {each}"
            for each in _unattached_shared_memory()
            if each not in existing.shared_memory
        ),
        *_cts(LXC_PATH, vmids),
    ]


def of_machine(
    directory: Path, run_dir: Path, state_dir: Path, lxc_path: Path, leases: Path, vmids: Iterable[int]
) -> list[str]:
    """All that pods have left of themselves on a machine of support/daemon.py which has no pod."""
    return [
        *(
            f"mount {mount.mountpoint}"
            for mount in mounts.mounts()
            if _of_a_pod(mount.mountpoint, run_dir, state_dir)
        ),
        *_files(run_dir / "pods", run_dir / "containers", run_dir / "exits", run_dir / "oci"),
        *_files(*state_dir.glob("images/*/rootfs")),
        *(f"lease {path}" for path in leases.glob("*/[0-9]*.*")),
        *(f"CNI record {path}" for path in (directory / "cni").glob("*.json")),
        *(f"link {name}" for name in _links() if name.startswith(("veth", "ovs-"))),
        *(f"rule {rule}" for rule in _nat_rules() if "CNI-DN-" in rule),
        *_rows(state_dir / "pods.db"),
        *_cts(lxc_path, vmids),
    ]


def _cts(lxc_path: Path, vmids: Iterable[int]) -> Iterator[str]:
    trees = cgroups.detect()
    for vmid in vmids:
        directory = lxc_path / str(vmid)
        if directory.exists() and {path.name for path in directory.iterdir()} - PROXMOX_LEAVES:
            yield f"CT {directory}"
        for group in (f"/lxc/{vmid}", f"/lxc.monitor/{vmid}"):
            if trees.exists(group):
                names = [processes.command_name(pid) for pid in trees.processes(group)]
                yield f"cgroup {group} with {names}"


def _of_a_pod(mountpoint: Path, run_dir: Path, state_dir: Path) -> bool:
    """The run directory itself is a mount: mounts below it are to propagate."""
    return (mountpoint.is_relative_to(run_dir) and mountpoint != run_dir) or mountpoint.is_relative_to(state_dir)


def _files(*directories: Path) -> Iterator[str]:
    for directory in directories:
        if directory.exists():
            # crun keeps compiled seccomp filters, for whoever needs them next.
            yield from (f"file {path}" for path in directory.iterdir() if path.name != ".cache")


def _rows(database: Path) -> Iterator[str]:
    with suppress(sqlite3.OperationalError):
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            for table in ("sandboxes", "containers"):
                yield from (f"row {row[0]} of {table}" for row in connection.execute(f"SELECT id FROM {table}"))
        finally:
            connection.close()


def _mounts(roots: Iterable[Path], vmids: Iterable[int]) -> Iterator[str]:
    places = [*roots, *(LXC_PATH / str(vmid) for vmid in vmids)]
    for mount in mounts.mounts():
        if any(mount.mountpoint.is_relative_to(place) for place in places):
            yield f"mount {mount.mountpoint}"


def _loop_devices(roots: Iterable[Path]) -> Iterator[str]:
    places = [str(root) for root in roots]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            file = backing.read_text().strip()
            if file.startswith(tuple(places)):
                yield f"loop device {backing.parts[3]} of {file}"


def _marked_processes() -> Iterator[str]:
    mark = f"PVECRI_TEST_RUN={RUN_ID}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield f"process {entry.name}: {command.strip()}"


def _links() -> list[str]:
    text = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return [line.split(": ")[1].partition("@")[0] for line in text.splitlines()]


def _nat_rules() -> list[str]:
    run = subprocess.run(["iptables", "--wait", "-t", "nat", "-S"], capture_output=True, text=True, check=False)
    return run.stdout.splitlines()


def _unattached_shared_memory() -> Iterator[str]:
    """The ids of System V segments that nobody has attached."""
    for line in Path("/proc/sysvipc/shm").read_text().splitlines():
        identity, attached = line.split()[1], line.split()[6]
        if attached == "0":
            yield identity


def _packet_filter_rules() -> Iterator[str]:
    yield from (f"rule {rule}" for rule in _nat_rules() if f'name: \\"{LINK_PREFIX}' in rule)
