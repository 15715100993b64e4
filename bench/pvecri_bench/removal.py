# SPDX-License-Identifier: Apache-2.0
"""Removing all that a run has made on the machine, by its paths, its network's name and its cgroup."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
from trial import footprint
from trial.plan import Plan
from trial.stack import remove_everything

from pvecri.linux.mounts import mounts
from pvecri_bench.client import Client
from pvecri_bench.images import Images
from pvecri_bench.processes import called, with_descendants
from pvecri_bench.session import CommandLines, labels

CNI_RECORDS = Path("/var/lib/cni/results")
SHARED_DIRECTORIES = (
    CNI_RECORDS,
    Path("/var/lib/cni"),
    Path("/run/containerd/s"),
    Path("/run/containerd"),
)
"""Which containerd uses whatever its configuration says, inner ones first."""


@contextmanager
def shared_directories_as_found() -> Iterator[None]:
    """Afterwards those of SHARED_DIRECTORIES that were not there before are gone again, when they are empty."""
    added = [directory for directory in SHARED_DIRECTORIES if not directory.exists()]
    try:
        yield
    finally:
        for directory in added:
            with suppress(OSError):
                directory.rmdir()


def remove_traces(client: Client, label: str, images: Images) -> None:
    """Remove a run's pods and images, by the CRI. What cannot be removed so is left."""
    with suppress(grpc.RpcError):
        for pod in client.pods(labels(label)).value:
            with suppress(grpc.RpcError):
                client.stop_pod(pod)
                client.remove_pod(pod)
        for image in (images.base, images.medium, *images.small):
            client.remove_image(image)


def remove_installation(plan: Plan, cgroup: str, helpers: CommandLines) -> None:
    """Remove what is left of an installation when its daemon has ended. Idempotent.

    `helpers` are killed, with all below them; then go the mounts, the bridge, the directories, the firewall's
    rules for the plan's network and the cgroup (`/NAME`).
    """
    sockets = _shim_sockets(plan)
    _kill(helpers)
    remove_everything(plan)
    for path in (*sockets, *_cni_records(plan)):
        path.unlink(missing_ok=True)
    _remove_rules(plan.network)
    _remove_cgroup(cgroup)


def left_behind(plan: Plan) -> list[str]:
    """What there still is of an installation, in words; empty when all is well."""
    return [f"{kind}: {thing}" for kind, things in footprint.take(plan).kinds().items() for thing in things]


def _kill(wanted: CommandLines) -> None:
    processes = with_descendants(called(wanted))
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _shim_sockets(plan: Plan) -> list[Path]:
    """Where containerd's shims listen: in a directory that all containerds share, as their bundles say."""
    addresses = plan.run.glob("containerd/io.containerd.runtime.v2.task/*/*/address")
    return [Path(address.read_text().strip().removeprefix("unix://")) for address in addresses]


def _cni_records(plan: Plan) -> list[Path]:
    """What containerd has written down of its pods' networks, lo included, by the place of their namespaces."""
    mark = str(plan.run).encode()
    return [path for path in CNI_RECORDS.glob("*") if path.is_file() and mark in path.read_bytes()]


def _remove_rules(network: str) -> None:
    """The rules and chains that the CNI plugin bridge made for masquerading carry the network's name."""
    saved = subprocess.run(["iptables-save", "--table", "nat"], check=True, capture_output=True, text=True).stdout
    rules = [shlex.split(line) for line in saved.splitlines() if f'name: \\"{network}\\"' in line]
    chains = {rule[1] for rule in rules if rule[1].startswith("CNI-")}
    for rule in rules:
        if rule[1] not in chains:
            _iptables("-D", *rule[1:])
    for chain in chains:
        _iptables("-F", chain)
        _iptables("-X", chain)


def _iptables(*arguments: str) -> None:
    command = ["iptables", "--wait", "--table", "nat", *arguments]
    subprocess.run(command, check=False, capture_output=True)


def _remove_cgroup(name: str) -> None:
    """From all hierarchies, with the groups below it, which have no processes any more."""
    roots = {entry.mountpoint for entry in mounts() if entry.fstype in {"cgroup", "cgroup2"}}
    for top in (root / name.lstrip("/") for root in roots):
        groups = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
        for group in (*groups, top):
            with suppress(OSError):
                group.rmdir()
