# SPDX-License-Identifier: Apache-2.0
"""The command `pvecri setup`: shows what it will do, and does it after a confirmation."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pvecri.config import files as config_files
from pvecri.config.settings import DEFAULT_PATH, Config, ProxmoxConfig
from pvecri.errors import FailedPrecondition, InvalidArgument
from pvecri.pods.store import recorded
from pvecri.setup import choice, files, steps, undo
from pvecri.setup.choice import Choice
from pvecri.setup.node import Node, Storage
from pvecri.setup.record import Record, under
from pvecri.setup.steps import MODULES, SYSCTL, SYSCTLS_FILE, UNIT, Step

PREFERRED = ("local-lvm", "local-zfs", "local-btrfs", "local")
"""Storages of Proxmox's installer, the one for root disks first."""

PLAIN_DIRECTORIES = ("dir", "btrfs", "zfspool")
"""Types of storages whose root disks need no size."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `setup` to the parser of `pvecri`."""
    setup = commands.add_parser(
        "setup",
        help="prepare this Proxmox VE node: account, configuration, network, service. Keeps what exists",
    )
    setup.add_argument("--dry-run", action="store_true", help="only print what would be done")
    setup.add_argument("--yes", action="store_true", help="do not ask")
    setup.add_argument("--undo", action="store_true", help="remove what setup made on this node, and nothing else")
    setup.add_argument(
        "--storage", help="storage of the CTs' root disks (default: local-lvm, or the first suitable)"
    )
    setup.add_argument("--template-storage", help="storage of the sandbox template (default: local)")
    setup.add_argument("--pool", default=choice.POOL, help="resource pool of the CTs (default: %(default)s)")
    setup.add_argument(
        "--pod-subnet", default="10.244.0.0/24", help="IPv4 subnet of this node's pods (default: %(default)s)"
    )
    setup.add_argument(
        "--no-privileged", action="store_true", help="no Sys.Modify: privileged pods will not start"
    )
    setup.add_argument(
        "--front", action="store_true", help="CRI-O, containerd or podman run pods through pvecri-runtime"
    )
    setup.add_argument(
        "--kubelet-config", type=Path, metavar="FILE", help="as of `pvecri check`: sysctls are set for its maxPods"
    )
    setup.add_argument(
        "--root", type=Path, default=Path("/"), help="write files below this directory, and start nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Errors are raised."""
    node = Node(options.root, options.kubelet_config)
    node.read()
    record = Record(options.root)
    if options.undo:
        return _undo(node, record, options)
    plan, kept = planned(node, record, steps.steps(_choice(node, options), node.lacking()))
    if kept:
        print(f"already there, and not changed: {', '.join(kept)}")
    if not plan:
        print("nothing to do")
        return 0
    if not _agreed([str(step) for step in plan], options):
        return 0 if options.dry_run else 1
    for step in plan:
        print(step, flush=True)
        node.perform(step)
        if step.undo or step.path:
            record.add(step)
    print("done. `pvecri check` checks the result, `pvecri setup --undo` takes it back")
    return 0


def planned(node: Node, record: Record, wanted: Sequence[Step]) -> tuple[list[Step], list[str]]:
    """The steps that are not done yet, and the names of what exists already.

    FailedPrecondition if the token exists without its secret, or the file of the secret without the token.
    """
    plan: list[Step] = []
    kept: list[str] = []
    for step in wanted:
        if step.name in (MODULES, UNIT) or step.name.startswith(SYSCTL):
            if node.starts_services and not node.has(step.name):
                plan.append(step)
        elif _is_there(node, step):
            more = list(_lacking(node, record, step))
            kept += [] if any(each.replaces for each in more) else [_kept(node, step)]
            plan += more
        else:
            plan.append(step)
    return plan, kept


def _is_there(node: Node, step: Step) -> bool:
    """Whether what a step makes exists, or another CNI network instead of the one that it would write."""
    if step.command and step.path:
        if node.has(step.name) and not node.exists(step.path):
            user, name = step.name.removeprefix("token ").split("!")
            raise FailedPrecondition(
                f"{step.name} exists, and {step.path} does not: write the token's secret to it, or delete the "
                f"token (pveum user token delete {user} {name})"
            )
        if not node.has(step.name) and node.exists(step.path):
            raise FailedPrecondition(f"{step.path} exists, and {step.name} does not: delete the file")
    if step.command:
        return node.has(step.name)
    assert step.path is not None
    if step.path.suffix == ".conflist":
        networks = under(node.root, step.path.parent)
        # podman's own network is none for pods, and sorts after this one.
        return networks.is_dir() and any("podman" not in each.name for each in networks.glob("*.conf*"))
    return node.exists(step.path)


def _lacking(node: Node, record: Record, step: Step) -> Iterator[Step]:
    """A step for what exists and is too little: a role's privileges, the sysctls in a file of ours."""
    role = step.name.removeprefix("role ")
    if step.name.startswith("role ") and (lacking := steps.ROLES[role] - node.roles[role]):
        yield steps.more_privileges(role, lacking)
    if step.path == SYSCTLS_FILE and record.unchanged(step.path) and (more := _too_low(node)):
        content = files.sysctls_in(under(node.root, step.path).read_text())
        yield replace(step, content=files.sysctls(content | more), replaces=True)


def _too_low(node: Node) -> dict[str, int]:
    """The sysctls that are too low, and not set in the existing file: by name, what is needed."""
    content = files.sysctls_in(under(node.root, SYSCTLS_FILE).read_text())
    return {each.name: each.needed for each in node.lacking() if content.get(each.name, 0) < each.needed}


def _kept(node: Node, step: Step) -> str:
    if step.path == SYSCTLS_FILE and (more := _too_low(node)):
        settings = ", ".join(f"{name} = {value}" for name, value in more.items())
        return f"{step.name} (changed since; it needs {settings})"
    return step.name


def _undo(node: Node, record: Record, options: argparse.Namespace) -> int:
    pods = recorded(under(options.root, Path("/var/lib/pvecri/pods.db"))).pods
    if pods:
        raise FailedPrecondition(
            f"{len(pods)} pods, or CTs that wait for one, are on this node: remove them first (crictl rmp --all "
            "--force; without proxmox.warm_pods a restart of pvecri removes those that wait)"
        )
    plan, kept = undo.planned(node, record)
    for reason in kept:
        print(f"kept: {reason}")
    if not plan:
        print("nothing to undo")
        return 0
    if not _agreed([str(each) for each in plan], options):
        return 0 if options.dry_run else 1
    for each in plan:
        print(each, flush=True)
        undo.perform(node, record, each)
    return 0


def _agreed(lines: Sequence[str], options: argparse.Namespace) -> bool:
    """Show the plan; whether it is to be carried out. FailedPrecondition if there is nobody to ask."""
    if options.yes and not options.dry_run:
        return True
    for line in lines:
        print(f"  {line}")
    if options.dry_run:
        return False
    if not sys.stdin.isatty():
        raise FailedPrecondition("nothing was done: --yes does it without a question")
    return input("Do this? [y/N] ").strip().lower() in ("y", "yes")


# -- what is set up ------------------------------------------------------------------------------------------


def _choice(node: Node, options: argparse.Namespace) -> Choice:
    """From the configuration if there is one, else from the options and the node's storages."""
    path = under(options.root, DEFAULT_PATH)
    if path.exists():
        return _configured(config_files.load(path).config, options)
    try:
        subnet = ipaddress.IPv4Network(options.pod_subnet)
    except ValueError as error:
        raise InvalidArgument("--pod-subnet", str(error)) from None
    name = ProxmoxConfig().node_name
    storages = node.storages(name)
    disks = _storage(storages, "--storage", options.storage, "rootdir")
    templates = _storage(storages, "--template-storage", options.template_storage, "vztmpl")
    return Choice(
        node=name,
        token=name,
        storage=disks.storage,
        template_storage=templates.storage,
        rootfs_size_gib=0 if disks.type in PLAIN_DIRECTORIES else 1,
        pool=options.pool,
        privileged=not options.no_privileged,
        front=options.front,
        pod_subnet=str(subnet),
    )


def _configured(settings: Config, options: argparse.Namespace) -> Choice:
    proxmox = settings.proxmox
    user, _, token = proxmox.token_id.partition("!")
    if not token or not proxmox.token_secret_file:
        raise FailedPrecondition(f"{DEFAULT_PATH} has no proxmox.token_id: setup makes an account with a token")
    return Choice(
        node=proxmox.node_name,
        token=token,
        storage=proxmox.storage,
        template_storage=proxmox.template_storage,
        rootfs_size_gib=proxmox.rootfs_size_gib,
        user=user,
        pool=proxmox.pool,
        first_vmid=proxmox.vmid_range.first,
        token_file=proxmox.token_secret_file,
        privileged=not options.no_privileged,
        front=options.front or not settings.nri.enabled,
        pod_subnet=options.pod_subnet,
    )


def _storage(storages: Sequence[Storage], option: str, wanted: str | None, content: str) -> Storage:
    """The storage that an option names, or else the best one; InvalidArgument if it does not allow the content."""
    suitable = {each.storage: each for each in storages if content in each.content.split(",")}
    if wanted:
        if wanted not in suitable:
            others = ", ".join(suitable) or "none"
            raise InvalidArgument(
                option, f"{wanted} is no active storage with content {content}; those are: {others}"
            )
        return suitable[wanted]
    order = PREFERRED if content == "rootdir" else PREFERRED[::-1]
    for name in (*order, *suitable):
        if name in suitable:
            return suitable[name]
    raise InvalidArgument(
        option, f"no active storage has content {content}: pvesm set STORAGE --content …,{content}"
    )
