# SPDX-License-Identifier: Apache-2.0
"""Proxmox's words become the right kind of error; the words are as Proxmox VE 9.2 gave them."""

from __future__ import annotations

import msgspec
import pytest

from pvecri.errors import InternalError, PermissionDenied, PvecriError, Unavailable
from pvecri.proxmox import errors


def answered(status: int, words: str, parameters: dict[str, str] | None = None) -> PvecriError:
    """The error for an answer with a body."""
    body = msgspec.json.encode({"message": f"{words}\n", "data": None, "errors": parameters})
    return errors.from_answer("start CT 204", status, words, body, "token cri@pve!t1")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("CT 201 already exists on node 'pve'", errors.CtExists),
        ("VM 100 already exists on node 'other'", errors.CtExists),
        ("Configuration file 'nodes/pve/lxc/9999.conf' does not exist", errors.CtNotFound),
        ("CT 204 not running", errors.CtNotRunning),
        ("CT 204 already running", errors.CtAlreadyRunning),
        ("CT is locked (backup)", errors.CtLocked),
        ("CT is locked (snapshot-delete)", errors.CtLocked),
        ("can't lock file '/run/lock/lxc/pve-config-204.lock' - got timeout", errors.CtLocked),
        ("can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout", errors.StorageLocked),
        ("cfs-lock 'storage-nfs' error: got lock request timeout", errors.StorageLocked),
        ("storage 'nosuch' does not exist", errors.ProxmoxError),
        ("volume 'local:vztmpl/nosuch.tar.gz' does not exist", errors.ProxmoxError),
        ("create pool failed: pool 'k8s' already exists", errors.ProxmoxError),
        ("can't remove CT 201 - protection mode enabled", errors.CtProtected),
    ],
)
def test_message_determines_the_kind_of_error(words: str, kind: type[errors.ProxmoxError]) -> None:
    answer = answered(500, words)
    task = errors.from_task("start CT 204", words, "", "UPID:…")

    assert type(answer) is kind
    assert str(answer).startswith(f"Proxmox: start CT 204: {words}")
    assert type(task) is (kind if kind is not errors.ProxmoxError else errors.ProxmoxTaskError)


def test_lock_in_a_config_is_named_with_how_to_remove_it() -> None:
    error = answered(500, "CT is locked (backup)")
    assert isinstance(error, errors.CtLocked)
    assert error.lock == "backup"
    assert "`pct unlock VMID`" in str(error)


def test_lock_of_a_running_task_has_no_name() -> None:
    error = answered(500, "can't lock file '/run/lock/lxc/pve-config-204.lock' - got timeout")
    assert isinstance(error, errors.CtLocked)
    assert error.lock == ""
    assert "unlock`" not in str(error)
    assert "`lslocks`" in str(error)


@pytest.mark.parametrize(
    ("status", "words", "service"),
    [
        (595, "Connection refused", "pvedaemon"),
        (
            500,
            "RPCEnvironment init request failed: Unable to load access control list: Connection refused",
            "pve-cluster",
        ),
    ],
)
def test_service_of_proxmox_that_does_not_run_is_named(status: int, words: str, service: str) -> None:
    error = answered(status, words)
    assert isinstance(error, Unavailable)
    assert words in str(error)
    assert service in str(error)


@pytest.mark.parametrize("lock", ["create", "destroyed"])
def test_lock_that_a_cut_off_task_leaves_says_what_takes_it_away(lock: str) -> None:
    error = answered(500, f"CT is locked ({lock})")
    assert isinstance(error, errors.CtLocked)
    assert "`pct unlock VMID` and then `pct destroy VMID`" in str(error)


def test_a_missing_privilege_is_named_with_the_account() -> None:
    error = answered(403, "Permission check failed (/vms/204, VM.PowerMgmt)")

    assert isinstance(error, PermissionDenied)
    assert "(/vms/204, VM.PowerMgmt): token cri@pve!t1 lacks the privilege" in str(error)


def test_refused_credentials_name_the_settings() -> None:
    error = errors.from_answer("ask for the version", 401, "Authentication failed!", b"", "token cri@pve!t1")

    assert isinstance(error, PermissionDenied)
    assert "token cri@pve!t1 were refused (Authentication failed!)" in str(error)
    assert "proxmox.token_secret_file" in str(error)


def test_refused_parameters_are_listed_by_name() -> None:
    error = answered(400, "Parameter verification failed.", {"vmid": "invalid format\n", "memory": "too small"})

    assert isinstance(error, errors.ParameterError)
    assert str(error) == "Proxmox: start CT 204: memory: too small; vmid: invalid format"
    assert error.errors == {"vmid": "invalid format\n", "memory": "too small"}


def test_an_error_without_a_body_has_the_reason_phrase() -> None:
    assert "unable to parse" in str(errors.from_answer("x", 500, "unable to parse", b"<html>", "token t"))


@pytest.mark.parametrize(
    ("status", "words"),
    [(595, "Connection refused"), (503, "Service Unavailable")],
)
def test_temporary_failure_is_unavailable(status: int, words: str) -> None:
    assert isinstance(answered(status, words), Unavailable)


@pytest.mark.parametrize(
    "words",
    [
        "cluster not ready - no quorum?",
        "cfs-lock 'file-user_cfg' error: no quorum!",
        "unable to create CT 204 - unable to open file '/etc/pve/nodes/p/lxc/204.conf.tmp.4' - Permission denied",
        "unable to open file '/etc/pve/nodes/pve/lxc/204.conf.tmp.471' - Read-only file system",
        "failed to remove config file: Permission denied",
    ],
)
def test_cluster_without_quorum_is_unavailable_and_named(words: str) -> None:
    """Each was INTERNAL in a task, and the last three in a response, too."""
    task = errors.from_task("destroy CT 204", words, "", "UPID:pve:1")
    for error in (answered(500, words), task):
        assert isinstance(error, errors.NoQuorum)
        assert error.status == "UNAVAILABLE"
        assert "`pvecm status`" in str(error)


def test_file_that_cannot_be_opened_elsewhere_is_no_matter_of_quorum() -> None:
    assert not isinstance(
        answered(500, "unable to open file '/var/lib/lxc/204/config.tmp.471' - Permission denied"), errors.NoQuorum
    )


UNTAR = (
    "command 'lxc-usernsexec -m u:0:100000:65536 -m g:0:100000:65536 -- tar xpf - -z --totals --one-file-system "
    "-p '--xattrs-include=user.*' -C /var/lib/lxc/900001/rootfs --skip-old-files --anchored --exclude './dev/*'' "
    "failed: exit code 2"
)
MAKE_FILESYSTEM = (
    "command 'mkfs.ext4 -O mmp -E 'root_owner=100000:100000' /dev/pve/vm-900001-disk-0' failed: exit code 1"
)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (
            f"unable to create CT 900001 - {UNTAR}",
            "unable to create CT 900001 - tar failed: exit code 2 [x: full] ",
        ),
        (MAKE_FILESYSTEM, "mkfs.ext4 failed: exit code 1 [x: full] "),
        ("startup for container '204' failed", "startup for container '204' failed [x: full] "),
        ("a command 'x' that did not fail", "a command 'x' that did not fail [x: full] "),
    ],
)
def test_error_of_a_task_has_the_name_of_the_failed_program(status: str, shown: str) -> None:
    error = errors.from_task("create CT 900001", status, "x: full", "UPID:pve:…:")
    assert str(error).startswith(f"Proxmox: create CT 900001: {shown}(task UPID:")


def test_protected_ct_names_how_to_end_that() -> None:
    assert "`pct set VMID --protection 0`" in str(answered(500, "can't remove CT 201 - protection mode enabled"))


@pytest.mark.parametrize(
    ("status", "holder"),
    [
        ("can't lock file '/var/lock/pve-manager/pve-storage-x' - got timeout", "`lslocks`"),
        ("cfs-lock 'storage-x' error: got lock request timeout", "a node of the cluster"),
    ],
)
def test_storage_lock_says_where_its_holder_is(status: str, holder: str) -> None:
    assert holder in str(errors.from_task("destroy CT 204", status, "", "UPID:…"))


def test_a_failed_task_has_its_log_and_its_name() -> None:
    error = errors.from_task("start CT 204", "startup for container '204' failed", "line 1; line 2", "UPID:pve:…:")

    assert isinstance(error, errors.ProxmoxTaskError)
    assert isinstance(error, InternalError)
    assert "startup for container '204' failed [line 1; line 2] (task UPID:pve:…:)" in str(error)
