# SPDX-License-Identifier: Apache-2.0
"""What of one installation the kernel knows: counted before, while it runs, and after it is gone."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from pvecri.linux.mounts import mounts
from trial.plan import Plan, vmid_cgroups


@dataclass(frozen=True)
class Footprint:
    """The names of things, by kind. Everything that belongs to the plan is found by its paths, VMIDs or bridge."""

    containers: tuple[str, ...]
    processes: tuple[str, ...]
    cgroups: tuple[str, ...]
    namespaces: tuple[str, ...]
    mounts: tuple[str, ...]
    links: tuple[str, ...]
    addresses: tuple[str, ...]
    firewall: tuple[str, ...]
    directories: tuple[str, ...]

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The kinds and what there is of each."""
        return asdict(self)


def take(plan: Plan, known_namespaces: tuple[str, ...] = ()) -> Footprint:
    """Look now. `known_namespaces` were the plan's before, and are looked for in every process."""
    groups = [path for path in vmid_cgroups() if int(path.name) in plan.vmids]
    pids = _processes(plan)
    return Footprint(
        containers=tuple(_output("lxc-ls", "-1", "-P", str(plan.lxc_path)).split())
        if plan.lxc_path.exists()
        else (),
        processes=tuple(pids),
        cgroups=tuple(str(sub) for path in groups for sub in (path, *path.rglob("*/"))),
        namespaces=_network_namespaces(plan, set(known_namespaces)),
        mounts=tuple(
            str(entry.mountpoint)
            for entry in mounts()
            if any(entry.mountpoint.is_relative_to(top) for top in (plan.state, plan.run))
        ),
        links=tuple(_links(plan.bridge)),
        addresses=tuple(path.name for path in plan.leases.glob("*/[0-9]*")),
        firewall=tuple(line for line in _output("iptables-save").splitlines() if plan.network in line),
        directories=tuple(str(path) for path in (plan.state, plan.run) if path.exists()),
    )


@dataclass(frozen=True)
class Cgroup:
    """A cgroup of a CT: its path below `lxc/VMID`, and how many processes are in it itself."""

    relative: Path
    processes: int


def cgroups_of(vmid: int) -> list[Cgroup]:
    """A CT's cgroups as one hierarchy shows them, parents first."""
    top = next(path for path in vmid_cgroups() if path.name == str(vmid) and any(path.glob("ns/cgroup.procs")))
    groups = [top, *sorted(path.parent for path in top.rglob("*/cgroup.procs"))]
    return [
        Cgroup(path.relative_to(top), len(_read(path / "cgroup.procs").split())) for path in dict.fromkeys(groups)
    ]


def _processes(plan: Plan) -> list[str]:
    """Pids that run in a CT of the plan, or name one of its paths on their command line."""
    marks = [str(plan.state).encode(), str(plan.run).encode()]
    groups = [f"/lxc/{vmid}" for vmid in {path.name for path in vmid_cgroups()} if int(vmid) in plan.vmids]
    return [
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if any(mark in _read(path / "cmdline") for mark in marks) or _in_any(path, groups)
    ]


def _in_any(process: Path, groups: list[str]) -> bool:
    lines = _read(process / "cgroup").decode().splitlines()
    return any(f"{line}/".find(f"{group}/") >= 0 for line in lines for group in groups)


def _network_namespaces(plan: Plan, known: set[str]) -> tuple[str, ...]:
    """Those of the plan's processes, those pinned below its directory, and the known ones still in use."""
    own = Path("/proc/self/ns/net").readlink().name
    found = {_namespace(Path("/proc") / pid) for pid in _processes(plan)}
    found |= {_namespace(path) for path in Path("/proc").glob("[0-9]*")} & known
    found |= {
        entry.root
        for entry in mounts()
        if entry.fstype == "nsfs" and entry.root.startswith("net:") and entry.mountpoint.is_relative_to(plan.run)
    }
    return tuple(sorted(found - {own, ""}))


def _namespace(process: Path) -> str:
    try:
        return (process / "ns/net").readlink().name
    except OSError:
        return ""


def _links(bridge: str) -> list[str]:
    """The bridge and what is plugged into it."""
    ports = Path("/sys/class/net", bridge, "brif")
    return [bridge, *(port.name for port in ports.iterdir())] if ports.exists() else []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # a process that has ended


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
