# SPDX-License-Identifier: Apache-2.0
"""`pvecri status`, `pods` and `version`: what the daemon that runs says of itself, by its CRI socket."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import pvecri
from pvecri.config import files
from pvecri.config.settings import Config
from pvecri.errors import Unavailable
from pvecri.linux import single_instance
from pvecri.pods.store import recorded_vmids
from pvecri.supervision import Failing

if TYPE_CHECKING:
    from pvecri.cri.client import RuntimeStatus

COMMANDS = ("status", "pods")

REQUIRED = ("RuntimeReady", "NetworkReady")
"""The conditions without which a kubelet's node is NotReady."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    status = commands.add_parser(
        "status", help="show the daemon, its conditions and its work; exit status 1 if it is not ready"
    )
    status.add_argument("--json", action="store_true")
    pods = commands.add_parser("pods", help="list the pods, each with its CT's VMID")
    pods.add_argument("--json", action="store_true")
    commands.add_parser("version", help="print the versions of this program and of the daemon that runs")


def run(config: Config, options: argparse.Namespace) -> int:
    """Run `status` or `pods`; returns the exit status. Unavailable if no daemon runs."""
    found = _ask_daemon(config.runtime.socket)
    if found is None:
        raise Unavailable(f"no daemon serves on {config.runtime.socket} (runtime.socket); systemctl status pvecri")
    if options.command == "pods":
        _print_pods(config, found, as_json=options.json)
        return 0
    ready = all(each.met for each in found.conditions if each.type in REQUIRED)
    if options.json:
        print(msgspec.json.encode({"ready": ready, **msgspec.structs.asdict(found)}).decode())
    else:
        print("\n".join(lines(config, found)))
    return 0 if ready else 1


def version(options: argparse.Namespace) -> int:
    """Print this program's version, and the daemon's if one runs; returns the exit status.

    Without a configuration, as after the package's installation, it prints the former. ConfigError for an invalid
    configuration, after the first line.
    """
    print(f"pvecri {pvecri.__version__}", flush=True)
    if options.config.exists() and (found := _ask_daemon(files.load(options.config).config.runtime.socket)):
        print(f"daemon {found.version}")
    return 0


def _ask_daemon(socket: Path) -> RuntimeStatus | None:
    """What the daemon that serves on `socket` says of itself; None if there is none."""
    from pvecri.cri import client  # only here: the daemon, which is a command too, has no use for the stubs

    return asyncio.run(client.runtime_status(socket)) if single_instance.listens(socket) else None


def lines(config: Config, found: RuntimeStatus) -> list[str]:
    """The status for a person. Pure."""
    proxmox, states = found.info["config"]["proxmox"], Counter(pod.state for pod in found.pods)
    span = config.proxmox.vmid_range
    containers = ", ".join(f"{number} {state}" for state, number in found.containers.items()) or "none"
    shown = [
        f"daemon      {found.version}, serving unix://{config.runtime.socket}",
        f"Proxmox VE  {proxmox['version'] or 'unknown'}, node {proxmox['node']}, {proxmox['url']}",
        f"VMIDs       {span.first} to {span.last}, pool {config.proxmox.pool or 'none'}",
        f"storage     {proxmox['storage']}",
        f"pods        {states['Ready']} ready, {states['NotReady']} not ready",
        f"containers  {containers}",
        f"images      {found.images} with {found.image_bytes / (1 << 30):.1f} GiB, "
        f"{found.info['pulls']['running']} pulls under way",
    ]
    for each in found.conditions:
        explained = ": ".join(part for part in (each.reason, each.message) if part)
        shown.append(f"{each.type:<22} {'yes' if each.met else 'no':<3} {explained}".rstrip())
    shown += [f"failing     {Failing(**work)}" for work in found.info["failing"]]
    for removal in found.info["removals"]:
        state = removal["error"] or "Proxmox has not destroyed it yet"
        shown.append(f"removed     CT {removal['vmid']} (pod {removal['pod']}): {state}")
    shown += [f"foreign CT  {ct['vmid']} ({ct['reason']}): {ct['detail']}" for ct in found.info["foreignCts"]]
    return shown


def _print_pods(config: Config, found: RuntimeStatus, *, as_json: bool) -> None:
    vmids = recorded_vmids(config.runtime.state_dir / "pods.db")
    pods = sorted(found.pods, key=lambda pod: (pod.namespace, pod.name, pod.created))
    if as_json:
        rows = [{**msgspec.structs.asdict(pod), "vmid": vmids.get(pod.id)} for pod in pods]
        print(msgspec.json.encode(rows).decode())
        return
    line = "{:<20} {:<40} {:<9} {:<9} {:<13} {:>8}"
    print(line.format("NAMESPACE", "NAME", "STATE", "VMID", "POD ID", "AGE"))
    for pod in pods:
        age = _age(time.time() - pod.created / 1e9)
        print(line.format(pod.namespace, pod.name, pod.state, vmids.get(pod.id, "-"), pod.id[:13], age))


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"
