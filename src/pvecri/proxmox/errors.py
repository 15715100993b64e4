# SPDX-License-Identifier: Apache-2.0
"""What Proxmox VE answers when it does not do as it was asked, as errors.

    InternalError
    └── ProxmoxError            any refusal; carries the HTTP status and Proxmox's own words
        ├── ParameterError      400: `errors` says which parameter and why
        ├── CtExists            the VMID is taken, by a CT or a VM, on whichever node
        ├── CtNotFound          no such CT on this node
        ├── CtNotRunning        it is stopped already
        ├── CtAlreadyRunning    it is running already
        ├── CtLocked            a lock of the CT is held: by a backup, a migration, another task
        └── ProxmoxTaskError    the task was accepted and failed; carries its UPID

    PermissionDenied
    └── Forbidden               403: the account lacks a privilege, or does not see the CT
    Unavailable
    └── CtHidden                the CT exists, but the account does not see it (yet)

Proxmox answers an unknown CT with 500 and words, as any other failure, so the words decide. They are the
same whether they come in the answer or as a task's exit status. They were read off Proxmox VE 9.2; all are
older than Proxmox VE 8.
"""

from __future__ import annotations

import re

import msgspec

from pvecri.errors import InternalError, PermissionDenied, PvecriError, Unavailable

NOT_PASSED_ON = 595
"""pveproxy could not reach pvedaemon, or the other node: the request has arrived nowhere."""
GATEWAY_STATUSES = frozenset({502, 503, 504, NOT_PASSED_ON, 596, 597, 599})
"""pveproxy, or a proxy before it, got no answer (596 and up are AnyEvent::HTTP's own)."""

NO_CLUSTER_FILES = "RPCEnvironment init request failed"
"""How any call is refused while pmxcfs, which holds the users and their rights, does not run."""


class ProxmoxError(InternalError):
    """Proxmox refused or failed.

    `status` in the CRI sense stays INTERNAL; `http_status` is 0 when the words are a task's.
    """

    def __init__(self, doing: str, words: str, http_status: int = 0) -> None:
        super().__init__(f"Proxmox: {doing}: {words or 'no reason given'}")
        self.doing = doing
        self.words = words
        self.http_status = http_status


class ParameterError(ProxmoxError):
    """Parameters were refused; `errors` has Proxmox's text for each."""

    def __init__(self, doing: str, errors: dict[str, str], http_status: int = 400) -> None:
        listed = "; ".join(f"{name}: {text.strip()}" for name, text in sorted(errors.items()))
        super().__init__(doing, listed, http_status)
        self.errors = errors


class CtExists(ProxmoxError):
    """The VMID is taken."""


class CtNotFound(ProxmoxError):
    """There is no such CT on the node."""


class Forbidden(PermissionDenied):
    """The account lacks a privilege. To one with rights on a pool only, a CT that does not exist is this, too."""


class CtHidden(Unavailable):
    """The CT exists, but our account does not see it: it is being created, or somebody took it out of our pool.

    A CT joins its pool only when its create task ends.
    """


class CtNotRunning(ProxmoxError):
    """The CT is not running."""


class CtAlreadyRunning(ProxmoxError):
    """The CT is running already."""


class CtLocked(ProxmoxError):
    """A lock is held on the CT, such as `backup`; worth trying again.

    `lock` names the one that stands in the CT's config; empty for that of a task which works on the CT right now.
    `create` and `destroyed` stay if the task's worker is killed, or the node goes down, before its end. Nothing in
    the API takes a lock away, so the message says what does.
    """

    def __init__(self, doing: str, words: str, http_status: int = 0) -> None:
        found = _CONFIG_LOCK.search(words)
        self.lock = found[1] if found else ""
        if self.lock in ("create", "destroyed"):
            words += ": if no task of it runs, one was cut off: on its node, `pct unlock VMID` and then "
            words += "`pct destroy VMID` remove what is left"
        elif self.lock:
            words += ": if no task of it runs, `pct unlock VMID` on its node takes it away"
        super().__init__(doing, words, http_status)


class ProxmoxTaskError(ProxmoxError):
    """A task ended badly; `upid` finds it in Proxmox's task log."""

    def __init__(self, doing: str, words: str, upid: str = "") -> None:
        super().__init__(doing, words)
        self.upid = upid


_CONFIG_LOCK = re.compile(r"\bCT is locked \(([\w-]+)\)")

_KINDS: tuple[tuple[re.Pattern[str], type[ProxmoxError]], ...] = (
    (re.compile(r"\b(?:CT|VM) \d+ already exists\b"), CtExists),
    (re.compile(r"Configuration file '[^']*/(?:lxc|qemu-server)/\d+\.conf' does not exist"), CtNotFound),
    (re.compile(r"\bCT \d+ not running\b"), CtNotRunning),
    (re.compile(r"\bCT \d+ already running\b"), CtAlreadyRunning),
    (_CONFIG_LOCK, CtLocked),
    (re.compile(r"can't lock file '[^']*' - got timeout"), CtLocked),
)


class _Body(msgspec.Struct):
    """The body of a refusal; every part of it may be missing."""

    message: str | None = None
    errors: dict[str, str] | None = None


def kind_of(words: str) -> type[ProxmoxError]:
    """Which error Proxmox's words stand for; ProxmoxError itself when they are no known ones."""
    return next((kind for pattern, kind in _KINDS if pattern.search(words)), ProxmoxError)


def from_answer(doing: str, status: int, reason: str, body: bytes, account: str) -> PvecriError:
    """The error for an answer of 400 or more.

    `doing` says what was asked (`create CT 900001`), `account` whose rights were used. The words are the body's
    message where there is one, else the reason phrase (a 401 has no body).
    """
    answer = _read(body)
    words = (answer.message or reason or "").strip()
    if status == 401:
        return PermissionDenied(
            f"Proxmox: {doing}: the credentials of {account} were refused ({words}): check proxmox.token_id "
            f"and proxmox.token_secret_file, or proxmox.username and proxmox.password_file"
        )
    if status == 403:
        return Forbidden(
            f"Proxmox: {doing}: {words}: {account} lacks the privilege; docs/proxmox-setup.md lists those needed"
        )
    if answer.errors:
        return ParameterError(doing, answer.errors, status)
    if away := _not_running(status, words):
        return Unavailable(f"Proxmox: {doing}: {away}")
    return kind_of(words)(doing, words, status)


def _not_running(status: int, words: str) -> str:
    """What of Proxmox does not work, if that is why it refused; else empty."""
    if status == NOT_PASSED_ON:
        return f"{status} {words}: pveproxy does not reach pvedaemon: does it run?"
    if words.startswith(NO_CLUSTER_FILES):
        return f"{words}: pmxcfs does not answer: does pve-cluster run?"
    return f"{status} {words}" if status in GATEWAY_STATUSES or "no quorum" in words else ""


def from_task(doing: str, exitstatus: str, log: str, upid: str) -> ProxmoxError:
    """The error for a task that ended with `exitstatus`; `log` is the end of what it wrote."""
    kind = kind_of(exitstatus)
    if kind is not ProxmoxError:
        return kind(doing, exitstatus)
    detail = f"{exitstatus} [{log}]" if log else exitstatus
    return ProxmoxTaskError(doing, f"{detail} (task {upid})", upid)


def _read(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body, strict=False)
    except msgspec.DecodeError:
        return _Body()
