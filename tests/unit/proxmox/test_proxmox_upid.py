# SPDX-License-Identifier: Apache-2.0
"""UPIDs are read into their parts."""

from __future__ import annotations

import pytest

from pvecri.proxmox import upid

CREATE = "UPID:pve:00000D6E:00009CE0:6B044A1C:vzcreate:201:cri@pve!t1:"


def test_upid_is_parsed() -> None:
    task = upid.parse(CREATE)

    assert (task.node, task.kind, task.id, task.user) == ("pve", "vzcreate", "201", "cri@pve!t1")
    assert (task.pid, task.start_time) == (0xD6E, 1795443228)
    assert str(task) == CREATE


def test_a_upids_path_is_escaped() -> None:
    path = upid.parse(CREATE).path

    assert path == (
        "/nodes/pve/tasks/UPID%3Apve%3A00000D6E%3A00009CE0%3A6B044A1C%3Avzcreate%3A201%3Acri%40pve%21t1%3A"
    )


def test_an_upload_has_no_id() -> None:
    assert upid.parse("UPID:pve:00000A21:00003B05:6B044921:imgcopy::root@pam!cri:").id == ""


@pytest.mark.parametrize("text", ["", "garbage", CREATE[:-1], CREATE + "x", CREATE.replace("pve:", "../x:", 1)])
def test_invalid_upid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a UPID"):
        upid.parse(text)
