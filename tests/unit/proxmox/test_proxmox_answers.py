# SPDX-License-Identifier: Apache-2.0
"""Answers are read whatever types Perl chose; they are as Proxmox VE 9.2 gave them."""

from __future__ import annotations

import msgspec
import pytest

from pvecri.proxmox.answers import Guest, TaskState, TaskStatus, ct_config


def test_a_config_has_its_options_as_text() -> None:
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

    assert (config.description, config.lock) == ("line\n", "")
    assert config.raw["lxc"] == "lxc.signal.halt: SIGTERM\nlxc.init.cwd: /srv"
    assert config.raw["memory"] == "128"


def test_a_guest_is_read_from_a_list_of_more() -> None:
    body = b'{"vmid": "100", "node": "pve", "type": "lxc", "template": 0, "tags": "a;b", "cpu": 0.1}'

    guest = msgspec.json.decode(body, type=Guest, strict=False)

    assert (guest.vmid, guest.node, guest.type) == (100, "pve", "lxc")


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
