# SPDX-License-Identifier: Apache-2.0
"""The steps of a setup, in their order. No I/O.

docs/proxmox-setup.md has the same commands, and explains each privilege.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvecri.checks.limits import FORWARDING, Sysctl
from pvecri.proxmox.privileges import POD_PRIVILEGES
from pvecri.setup import files
from pvecri.setup.choice import Choice

UNIT = "pvecri.service"
MODULES = "modules"
SYSCTL = "sysctl "
"""The beginning of the names of steps that set one, before `NAME=VALUE`."""

SYSCTLS_FILE = Path("/etc/sysctl.d/90-pvecri.conf")

ROLES: Mapping[str, frozenset[str]] = {
    "KubePods": POD_PRIVILEGES,
    "KubeNode": frozenset({"Sys.Audit"}),
    "KubeRootfs": frozenset({"Datastore.AllocateSpace"}),
    "KubeTemplates": frozenset({"Datastore.AllocateTemplate", "Datastore.Audit"}),
    "KubePrivileged": frozenset({"Sys.Modify"}),
}
"""Privileges by role. KubePrivileged is for the CTs of privileged pods, which Proxmox reserves for Sys.Modify."""


@dataclass(frozen=True)
class Step:
    """One object that a setup makes: in Proxmox by `command`, or the file `path` with `content`.

    `name` identifies it in the node's state and in the record. `undo` removes what `command` made. `shared`
    objects are used by the other nodes of a cluster, too. A step with `command` and `path` writes the secret of
    the token that the command prints. With `replaces` the file exists.
    """

    name: str
    command: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    shared: bool = False
    path: Path | None = None
    content: str = ""
    mode: int = 0o644
    replaces: bool = False

    def __str__(self) -> str:
        if not self.command:
            return f"{'replace' if self.replaces else 'write'} {self.path}"
        secret = f"    # the secret is written to {self.path}, mode 0600" if self.path else ""
        return shlex.join(self.command) + secret


def steps(choice: Choice, lacking: Sequence[Sysctl] = ()) -> list[Step]:
    """All steps: Proxmox first, then files, then the service, which needs both. `lacking` are set, too."""
    return [*_in_proxmox(choice), *_files(choice, lacking), *_service(lacking)]


def _in_proxmox(choice: Choice) -> Iterator[Step]:
    if choice.pool:
        pool = ("pveum", "pool", "add", choice.pool, "--comment", "Kubernetes pods")
        yield Step(f"pool {choice.pool}", pool, ("pveum", "pool", "delete", choice.pool), shared=True)
    for role in ROLES:
        if role != "KubePrivileged" or choice.privileged:
            yield _role(role)
    user = ("pveum", "user", "add", choice.user, "--comment", "pvecri")
    yield Step(f"user {choice.user}", user, ("pveum", "user", "delete", choice.user), shared=True)
    yield _acl(choice, f"/pool/{choice.pool}" if choice.pool else "/vms", "KubePods")
    yield _acl(choice, f"/nodes/{choice.node}", "KubeNode", shared=False)
    yield _acl(choice, f"/storage/{choice.storage}", "KubeRootfs")
    yield _acl(choice, f"/storage/{choice.template_storage}", "KubeTemplates")
    if choice.privileged:
        yield _acl(choice, "/", "KubePrivileged", "--propagate", "0")
    token = (choice.user, choice.token)
    yield Step(
        f"token {choice.token_id}",
        ("pveum", "user", "token", "add", *token, "--privsep", "0", "--output-format", "json"),
        ("pveum", "user", "token", "delete", *token),
        path=choice.token_file,
        mode=0o600,
    )
    if choice.first_vmid > 101:
        options = ("pvesh", "set", "/cluster/options")
        proposed = f"lower=100,upper={choice.first_vmid - 1}"
        yield Step("next-id", (*options, "--next-id", proposed), (*options, "--delete", "next-id"), shared=True)


def _role(name: str) -> Step:
    privileges = " ".join(sorted(ROLES[name]))
    command = ("pveum", "role", "add", name, "--privs", privileges)
    return Step(f"role {name}", command, ("pveum", "role", "delete", name), shared=True)


def more_privileges(role: str, lacking: frozenset[str]) -> Step:
    """The step for a role that lacks privileges. It is not undone: who else uses the role is unknown."""
    command = ("pveum", "role", "modify", role, "--append", "1", "--privs", " ".join(sorted(lacking)))
    return Step(f"role {role} with {', '.join(sorted(lacking))}", command, shared=True)


def acl_name(path: str, user: str, role: str) -> str:
    """The name of an entry of Proxmox's access control list in the node's state."""
    return f"acl {path} {user} {role}"


def _acl(choice: Choice, path: str, role: str, *options: str, shared: bool = True) -> Step:
    entry = (path, "--users", choice.user, "--roles", role)
    command = ("pveum", "acl", "modify", *entry, *options)
    return Step(acl_name(path, choice.user, role), command, ("pveum", "acl", "delete", *entry), shared=shared)


def _files(choice: Choice, lacking: Sequence[Sysctl]) -> Iterator[Step]:
    yield _file("/etc/pvecri/config.toml", files.configuration(choice))
    yield _file("/etc/modules-load.d/pvecri.conf", files.MODULES)
    values = {FORWARDING: 1, **{each.name: each.needed for each in lacking}}
    yield _file(str(SYSCTLS_FILE), files.sysctls(values))
    if not choice.front:
        yield _file("/etc/cni/net.d/10-pvecri.conflist", files.network(choice.pod_subnet))
        yield _file("/etc/crictl.yaml", files.CRICTL)
        yield _file("/etc/systemd/system/kubelet.service.d/20-pvecri.conf", files.KUBELET)


def _file(path: str, content: str) -> Step:
    return Step(f"file {path}", path=Path(path), content=content)


def _service(lacking: Sequence[Sysctl]) -> Iterator[Step]:
    yield Step(MODULES, ("modprobe", "overlay"))
    for each in lacking:
        # Forwarding stays: whatever else on the node has come to need it is unknown.
        undo = () if each.name == FORWARDING else _set(each.name, each.value)
        yield Step(f"{SYSCTL}{each.name}={each.needed}", _set(each.name, each.needed), undo)
    yield Step(UNIT, ("systemctl", "enable", "--now", UNIT), ("systemctl", "disable", "--now", UNIT))


def _set(name: str, value: int) -> tuple[str, ...]:
    return ("sysctl", "--quiet", "--write", f"{name}={value}")
