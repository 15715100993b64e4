# SPDX-License-Identifier: Apache-2.0
"""Errors of the Proxmox VE API.

    InternalError
    └── ProxmoxError            any failure; carries the HTTP status and Proxmox's message
        ├── ParameterError      400: `errors` has the message of each parameter
        ├── CtExists            the VMID belongs to a CT or a VM, on any node
        ├── CtNotFound          no such CT on this node
        ├── CtNotRunning        it is stopped already
        ├── CtAlreadyRunning    it is running already
        ├── CtLocked            the CT is locked by a backup, a migration, another task
        ├── CtProtected         the CT has the option `protection`
        ├── StorageLocked       a storage's lock is held for longer than Proxmox waits for it
        ├── NoQuorum            /etc/pve is read-only; UNAVAILABLE for clients
        └── ProxmoxTaskError    the task was accepted and failed; carries its UPID

    PermissionDenied
    └── Forbidden               403: the account lacks a privilege, or does not see the CT
    Unavailable
    ├── ConnectionLost          the request was sent and no response came: whether it was processed is unknown
    ├── CreateUnanswered        a create got no response, and there is no CT (yet)
    └── CtHidden                the CT exists, but the account does not see it (yet)

Proxmox answers most failures with status 500, so the kind is taken from the message; it is the same in a response
and in a task's exit status. The patterns match Proxmox VE 9.2's messages, all of which are older than version 8.
"""

from __future__ import annotations

import re

import msgspec

from pvecri.errors import InternalError, PermissionDenied, PvecriError, Unavailable

NOT_PASSED_ON = 595
"""pveproxy could not reach pvedaemon or the other node: the request was not processed."""
GATEWAY_STATUSES = frozenset({502, 503, 504, NOT_PASSED_ON, 596, 597, 599})
"""pveproxy, or a proxy in front of it, got no response (596 and up are AnyEvent::HTTP's own)."""

NO_CLUSTER_FILES = "RPCEnvironment init request failed"
"""The error of every call while pmxcfs does not run, which stores the users and their permissions."""


class ProxmoxError(InternalError):
    """Proxmox refused or failed; `http_status` is 0 if the message is a task's exit status."""

    def __init__(self, action: str, message: str, http_status: int = 0) -> None:
        super().__init__(f"Proxmox: {action}: {message or 'no reason given'}")
        self.action = action
        self.message = message
        self.http_status = http_status


class ParameterError(ProxmoxError):
    """Parameters were refused; `errors` has Proxmox's message for each."""

    def __init__(self, action: str, errors: dict[str, str], http_status: int = 400) -> None:
        listed = "; ".join(f"{name}: {text.strip()}" for name, text in sorted(errors.items()))
        super().__init__(action, listed, http_status)
        self.errors = errors


class CtExists(ProxmoxError):
    """The VMID belongs to another guest."""


class CtNotFound(ProxmoxError):
    """There is no such CT on the node."""


class Forbidden(PermissionDenied):
    """The account lacks a privilege. An account with rights on a pool only gets this for a missing CT too."""


class CtHidden(Unavailable):
    """The CT exists, but our account does not see it: a CT joins its pool at the create's end."""


class ConnectionLost(Unavailable):
    """The request was sent and no response came: whether Proxmox has processed it is unknown."""


class CreateUnanswered(Unavailable):
    """A create got no response, and could not be sent again: Proxmox may still be processing it."""


class CtNotRunning(ProxmoxError):
    """The CT is not running."""


class CtAlreadyRunning(ProxmoxError):
    """The CT is running already."""


class CtLocked(ProxmoxError):
    """The CT has a lock, such as `backup`; worth a retry.

    `lock` is the one in the CT's config, empty for the lock of a task that is running on the CT. `create` and
    `destroyed` stay if the task's worker is killed or the node goes down before its end. The API cannot remove a
    lock, so the message names the commands.
    """

    def __init__(self, action: str, message: str, http_status: int = 0) -> None:
        found = _CONFIG_LOCK.search(message)
        self.lock = found[1] if found else ""
        if self.lock in ("create", "destroyed"):
            message += ": if no task of it runs, one was cut off: on its node, `pct unlock VMID` and then "
            message += "`pct destroy VMID` remove what is left"
        elif self.lock:
            message += ": if no task of it runs, `pct unlock VMID` on its node removes the lock"
        else:
            message += _HOLDER
        super().__init__(action, message, http_status)


class CtProtected(ProxmoxError):
    """The CT has the option `protection`: Proxmox removes neither it nor its disks."""

    def __init__(self, action: str, message: str, http_status: int = 0) -> None:
        super().__init__(action, f"{message}: `pct set VMID --protection 0` on its node ends that", http_status)


class StorageLocked(ProxmoxError):
    """The lock of a storage, which Proxmox takes to create and remove volumes, is held; Proxmox has waited for it.

    A storage of the cluster has a lock in /etc/pve, which expires two minutes after its owner's end.
    """

    def __init__(self, action: str, message: str, http_status: int = 0) -> None:
        shared = message.rpartition("cfs-lock")[1]
        holder = ": a task on a node of the cluster holds it" if shared else _HOLDER
        super().__init__(action, f"{message}{holder}", http_status)


class NoQuorum(ProxmoxError):
    """Configs cannot be written: /etc/pve is read-only, most likely because the cluster has no quorum."""

    status = Unavailable.status

    def __init__(self, action: str, message: str, http_status: int = 0) -> None:
        hint = "/etc/pve is read-only while the cluster has no quorum: `pvecm status`"
        super().__init__(action, f"{message}: {hint}", http_status)


class ProxmoxTaskError(ProxmoxError):
    """A task failed; `upid` finds it in Proxmox's task log."""

    def __init__(self, action: str, message: str, upid: str = "") -> None:
        super().__init__(action, message)
        self.upid = upid


_HOLDER = ": another task or process on the node holds it (`lslocks`)"

_CONFIG_LOCK = re.compile(r"\bCT is locked \(([\w-]+)\)")

_COMMAND = re.compile(r"\bcommand '(?:lxc-usernsexec .*? -- )?([^\s']+).*'(?= failed: )", re.DOTALL)
"""A command line in a message of PVE::Tools::run_command. lxc-usernsexec only runs the program in the CT's IDs."""

_KINDS: tuple[tuple[re.Pattern[str], type[ProxmoxError]], ...] = (
    (re.compile(r"\b(?:CT|VM) \d+ already exists\b"), CtExists),
    (re.compile(r"Configuration file '[^']*/(?:lxc|qemu-server)/\d+\.conf' does not exist"), CtNotFound),
    (re.compile(r"\bCT \d+ not running\b"), CtNotRunning),
    (re.compile(r"\bCT \d+ already running\b"), CtAlreadyRunning),
    (_CONFIG_LOCK, CtLocked),
    (re.compile(r"protection mode enabled"), CtProtected),
    # The flock of a storage that is not shared, and the lock directory of one that is (PVE::Storage::Plugin,
    # cluster_lock_storage; PVE::Cluster, cfs_lock_storage).
    (re.compile(r"can't lock file '[^']*/pve-storage-[^']*' - got timeout"), StorageLocked),
    (re.compile(r"cfs-lock 'storage-[^']*' error: got lock request timeout"), StorageLocked),
    # PVE::Cluster: check_cfs_quorum and cfs_lock, cfs_write_file by PVE::File, PVE::AbstractConfig.
    (re.compile(r"\bno quorum\b"), NoQuorum),
    (re.compile(r"unable to open file '/etc/pve/[^']*' - (?:Permission denied|Read-only file system)"), NoQuorum),
    (re.compile(r"failed to remove config file: Permission denied"), NoQuorum),
    # The flock of the CT's config: a task waits ten seconds for another one (PVE::AbstractConfig, lock_config).
    (re.compile(r"can't lock file '[^']*' - got timeout"), CtLocked),
)


class _Body(msgspec.Struct):
    """The body of an error response; every part of it may be missing."""

    message: str | None = None
    errors: dict[str, str] | None = None


def kind_of(message: str) -> type[ProxmoxError]:
    """The kind of error of a message; ProxmoxError itself for unknown ones."""
    return next((kind for pattern, kind in _KINDS if pattern.search(message)), ProxmoxError)


def from_answer(action: str, status: int, reason: str, body: bytes, account: str) -> PvecriError:
    """The error for a response with `status` 400 or more.

    `action` is what was requested (`create CT 900001`), `account` whose privileges were used. The message is the
    body's, else the reason phrase (a 401 has no body).
    """
    answer = _read(body)
    message = (answer.message or reason or "").strip()
    if status == 401:
        return PermissionDenied(
            f"Proxmox: {action}: the credentials of {account} were refused ({message}): check proxmox.token_id "
            f"and proxmox.token_secret_file, or proxmox.username and proxmox.password_file"
        )
    if status == 403:
        return Forbidden(
            f"Proxmox: {action}: {message}: {account} lacks the privilege (see docs/proxmox-setup.md)"
        )
    if answer.errors:
        return ParameterError(action, answer.errors, status)
    if problem := _not_running(status, message):
        # pvedaemon continues with a request for whose response pveproxy has waited too long.
        lost = status in GATEWAY_STATUSES and status != NOT_PASSED_ON
        return (ConnectionLost if lost else Unavailable)(f"Proxmox: {action}: {problem}")
    return kind_of(message)(action, message, status)


def _not_running(status: int, message: str) -> str:
    """Which part of Proxmox is down, if that is why it refused; else empty."""
    if status == NOT_PASSED_ON:
        return f"{status} {message}: pveproxy does not reach pvedaemon: does it run?"
    if message.startswith(NO_CLUSTER_FILES):
        return f"{message}: pmxcfs does not answer: does pve-cluster run?"
    return f"{status} {message}" if status in GATEWAY_STATUSES else ""


def from_task(action: str, exitstatus: str, log: str, upid: str) -> ProxmoxError:
    """The error for a task that ended with `exitstatus`; `log` is the end of its log."""
    # A known message needs no log: it says what is wrong, and its kind is what callers act on.
    kind = kind_of(exitstatus)
    if kind is not ProxmoxError:
        return kind(action, exitstatus)
    return ProxmoxTaskError(action, f"{task_failure(exitstatus, log)} (task {upid})", upid)


def task_failure(exitstatus: str, log: str) -> str:
    """Why a task failed, in one sentence: its exit status without command lines, and the end of its log.

    Of a command that failed, the program's name is left; the task's log has all of it.
    """
    reason = _COMMAND.sub(r"\1", exitstatus)
    return f"{reason} [{log}]" if log else reason


def _read(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body, strict=False)
    except msgspec.DecodeError:
        return _Body()
