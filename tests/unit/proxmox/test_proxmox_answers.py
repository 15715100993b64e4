# SPDX-License-Identifier: Apache-2.0
"""Answers are read whatever types Perl chose; they are as Proxmox VE 9.2 gave them."""

from __future__ import annotations

import msgspec
import pytest

from pvecri.proxmox.answers import CtConfig, CtStatus, Guest, RunState, TaskState, TaskStatus, ct_config


def test_a_config_has_its_options_typed_and_as_text() -> None:
    config = ct_config(
        {
            "rootfs": "local:213/vm-213-disk-0.raw,size=1G",
            "memory": "128",
            "cpulimit": "0.5",
            "swap": 0,
            "unprivileged": 1,
            "lxc": [["lxc.signal.halt", "SIGTERM"], ["lxc.init.cwd", "/srv"]],
            "tags": "b;k8s",
            "description": "line\n",
            "digest": "f049",
        }
    )

    assert (config.memory, config.cpulimit, config.swap, config.unprivileged) == (128, 0.5, 0, True)
    assert config.tag_set == {"b", "k8s"}
    assert config.raw["lxc"] == "lxc.signal.halt: SIGTERM\nlxc.init.cwd: /srv"
    assert config.raw["memory"] == "128"


def test_unset_options_have_proxmoxs_defaults() -> None:
    assert ct_config({}) == CtConfig(memory=512, swap=512, cpuunits=100)


@pytest.mark.parametrize(
    ("body", "state", "pid"),
    [
        (
            b'{"vmid": 203, "status": "running", "pid": 3629, "pressurecpusome": null, "ha": {"managed": 0}}',
            "running",
            3629,
        ),
        (b'{"vmid": "204", "status": "stopped", "uptime": 0, "lock": "backup"}', "stopped", 0),
    ],
)
def test_a_status_tells_whether_the_ct_runs(body: bytes, state: str, pid: int) -> None:
    status = msgspec.json.decode(body, type=CtStatus, strict=False)

    assert (status.status, status.pid) == (RunState(state), pid)


def test_a_guest_has_its_tags_as_a_set() -> None:
    body = b'{"vmid": 100, "node": "pve", "type": "lxc", "template": 0, "tags": "a;b", "cpu": 0.1}'

    guest = msgspec.json.decode(body, type=Guest, strict=False)

    assert (guest.vmid, guest.template) == (100, False)
    assert guest.tag_set == {"a", "b"}


@pytest.mark.parametrize(
    ("exitstatus", "succeeded"),
    [
        ("OK", True),
        ("WARNINGS: 2", True),
        ("unexpected status", False),
        ("", False),
        ("CT is locked (backup)", False),
    ],
)
def test_a_task_with_warnings_has_succeeded(exitstatus: str, *, succeeded: bool) -> None:
    assert TaskStatus(status=TaskState.STOPPED, exitstatus=exitstatus).succeeded is succeeded
