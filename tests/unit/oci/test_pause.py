# SPDX-License-Identifier: Apache-2.0
"""The OCI spec of a pause container."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.plans import MAPPED, OLD_RUNC, able

from pvecri.model import IdMapping
from pvecri.oci import pause
from pvecri.oci.apparmor import DEFAULT_PROFILE
from pvecri.oci.pause import PausePlan

PLAN = PausePlan(
    rootfs=Path("/run/pause"), cgroup="/lxc/105/pause", joined={}, made=(), mappings=(), features=able()
)
POD = {"network": "/ns/net", "ipc": "/ns/ipc", "uts": "/ns/uts", "user": "/ns/user"}


def spec(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(pause.build(replace(PLAN, **changes)))
    return document


def test_pause_has_no_capabilities_and_no_mounts_of_the_node() -> None:
    document = spec()
    process = document["process"]
    assert process["capabilities"] == {}
    assert process["noNewPrivileges"] is True
    assert process["user"] == {"uid": 65_534, "gid": 65_534}
    assert document["root"] == {"path": "/run/pause", "readonly": True}
    assert {mount["type"] for mount in document["mounts"]} == {"proc", "tmpfs"}
    assert document["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]


def test_pause_joins_or_creates_the_pods_namespaces() -> None:
    namespaces = {each["type"]: each.get("path", "") for each in spec(joined=POD)["linux"]["namespaces"]}
    assert namespaces == {"mount": "", "pid": "", **POD}
    made = {each["type"]: each.get("path", "") for each in spec(made=tuple(POD))["linux"]["namespaces"]}
    assert made == {"mount": "", "pid": "", **dict.fromkeys(POD, "")}


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({"made": ("user",), "mappings": MAPPED}, True),
        ({"joined": POD, "mappings": MAPPED}, False),
        ({"joined": POD, "mappings": MAPPED, "features": able(oci_runtime=OLD_RUNC)}, True),
    ],
)
def test_id_mappings_are_set_for_a_new_user_namespace_and_for_old_runc(
    changes: dict[str, Any], present: bool
) -> None:
    assert ("uidMappings" in spec(**changes)["linux"]) is present


def test_pause_runs_as_root_if_nobody_is_not_mapped() -> None:
    small = (IdMapping(container_id=0, host_id=100_000, length=1000),)
    assert spec(made=("user",), mappings=small)["process"]["user"] == {"uid": 0, "gid": 0}


def test_pause_gets_the_default_apparmor_profile_if_loaded() -> None:
    assert "apparmorProfile" not in spec()["process"]
    assert spec(features=able(apparmor_default=True))["process"]["apparmorProfile"] == DEFAULT_PROFILE
