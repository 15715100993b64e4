# SPDX-License-Identifier: Apache-2.0
"""The node that is set up: its state by `pvesh`, its files below a root directory, and the commands of steps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TypeVar

import msgspec

from pvecri.checks import kubelet, limits
from pvecri.errors import CommandError, FailedPrecondition, InternalError
from pvecri.linux.files import write_atomically
from pvecri.setup.record import under
from pvecri.setup.steps import MODULES, SYSCTL, UNIT, Step, acl_name

TIMEOUT = 900
"""Seconds for one command: the unit gives the daemon ten minutes to start."""


_T = TypeVar("_T")


class Role(msgspec.Struct):
    """Of GET /access/roles; `privs` is a comma-separated list."""

    roleid: str
    privs: str = ""


class Storage(msgspec.Struct):
    """Of GET /nodes/{node}/storage; `content` is a comma-separated list."""

    storage: str
    type: str
    content: str = ""
    active: int = 0


class _Pool(msgspec.Struct):
    poolid: str


class _Token(msgspec.Struct):
    tokenid: str


class _User(msgspec.Struct):
    userid: str
    tokens: list[_Token] | None = None


class _Acl(msgspec.Struct):
    path: str
    type: str
    ugid: str
    roleid: str


class _Secret(msgspec.Struct):
    value: str


class Node:
    """The node of Proxmox VE that this runs on. Below a `root` other than `/` nothing is started."""

    def __init__(self, root: Path, kubelet_config: Path | None = None) -> None:
        """`kubelet_config` is a KubeletConfiguration instead of kubeadm's below `root`."""
        self.root = root
        self._kubelet_config = kubelet_config or under(root, kubelet.CONFIG)
        self.roles: dict[str, frozenset[str]] = {}
        self.tokens: frozenset[str] = frozenset()
        self._present: set[str] = set()

    def read(self) -> None:
        """Read Proxmox's state. FailedPrecondition without Proxmox or root; CommandError, InternalError."""
        if os.geteuid() != 0:
            raise FailedPrecondition("pvecri setup needs root")
        for program in ("pveum", "pvesh"):
            if not shutil.which(program):
                raise FailedPrecondition(f"{program} is not installed: pvecri setup runs on a Proxmox VE node")
        self.roles = {each.roleid: frozenset(each.privs.split(",")) for each in _get("/access/roles", list[Role])}
        users = _get("/access/users", list[_User], "--full", "1")
        self.tokens = frozenset(f"{user.userid}!{each.tokenid}" for user in users for each in user.tokens or ())
        self._present = {f"role {role}" for role in self.roles}
        self._present |= {f"token {token}" for token in self.tokens}
        self._present |= {f"user {user.userid}" for user in users}
        self._present |= {f"pool {each.poolid}" for each in _get("/pools", list[_Pool])}
        self._present |= {
            acl_name(each.path, each.ugid, each.roleid)
            for each in _get("/access/acl", list[_Acl])
            if each.type == "user"
        }
        self._present |= {"next-id"} & _get("/cluster/options", dict[str, object]).keys()
        if self.starts_services and _succeeds("systemctl", "--quiet", "is-enabled", UNIT):
            self._present.add(UNIT)
        if "overlay" in Path("/proc/filesystems").read_text().split():
            self._present.add(MODULES)

    @property
    def starts_services(self) -> bool:
        """Whether modules are loaded, sysctls set and the service enabled: not below another root."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()

    def has(self, name: str) -> bool:
        """Whether what a step makes is there, by its name: an object in Proxmox, the service, a sysctl's value."""
        if name.startswith(SYSCTL):
            sysctl, _, value = name.removeprefix(SYSCTL).partition("=")
            return str(limits.value(sysctl, self.proc)) == value
        return name in self._present

    @property
    def proc(self) -> Path:
        """The filesystem of processes and sysctls; below another root it is that one's, if it is mounted."""
        return self.root / "proc"

    def lacking(self) -> list[limits.Sysctl]:
        """The sysctls that are too low for the pods of the node's kubelet, or of one with its default."""
        pods = kubelet.max_pods(self._kubelet_config) or limits.DEFAULT_PODS
        return limits.lacking(pods, self.proc)

    def exists(self, path: Path) -> bool:
        """Whether a file exists below the root directory."""
        return under(self.root, path).exists()

    def storages(self, node: str) -> list[Storage]:
        """The node's active storages."""
        return [each for each in _get(f"/nodes/{node}/storage", list[Storage]) if each.active]

    def perform(self, step: Step) -> None:
        """Do one step. CommandError; OSError if a file cannot be written."""
        output = run(*step.command) if step.command else step.content
        if step.command and step.path:
            output = _decode(output, _Secret, "pveum").value + "\n"
        if step.path:
            path = under(self.root, step.path)
            path.parent.mkdir(mode=0o700 if step.mode == 0o600 else 0o755, parents=True, exist_ok=True)
            if step.replaces:
                write_atomically(path, output.encode())
                path.chmod(step.mode)
                return
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, step.mode), "w") as file:
                file.write(output)


def run(*command: str) -> str:
    """The standard output of a command. CommandError if it fails or does not end; its message has stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(" ".join(command), -9, f"no end after {TIMEOUT} s") from error
    except OSError as error:
        raise InternalError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise CommandError(" ".join(command), done.returncode, done.stderr or done.stdout)
    return done.stdout


def _succeeds(*command: str) -> bool:
    try:
        run(*command)
    except CommandError:
        return False
    return True


def _get(path: str, kind: type[_T], *options: str) -> _T:
    return _decode(run("pvesh", "get", path, *options, "--output-format", "json"), kind, f"pvesh get {path}")


def _decode(text: str, kind: type[_T], origin: str) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise InternalError(f"{origin}: {error}") from error
