# SPDX-License-Identifier: Apache-2.0
"""What plugins add to a container is looked up on the node, and is shown with the pod's ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.plans import MAPPED, PLAN

from pvecri.errors import FailedPrecondition
from pvecri.model import Resources
from pvecri.oci.adjustment import Adjustment
from pvecri.oci.devices import HostDevice
from pvecri.oci.runtime_spec import Mount
from pvecri.pods.container import adjustments

NULL = HostDevice("/dev/null2", "c", 1, 3, 0o666, 0, 0, "rwm")


def bind(source: Path | str, *options: str) -> Adjustment:
    """An adjustment that shows a path of the node at /added."""
    mount = Mount(destination="/added", type="bind", source=str(source), options=options)
    return Adjustment(mounts={"/added": mount})


def test_adjustment_replaces_only_the_limits_that_it_sets(tmp_path: Path) -> None:
    asked = replace(PLAN, config=PLAN.config)
    adjustment = Adjustment(resources=Resources(cpu_shares=7), oom_score_adj=-5)
    limits = adjustments.adjusted(asked, adjustment, None, ()).config.resources
    assert limits == Resources(cpu_shares=7, oom_score_adj=-5)


def test_devices_are_added_and_removed() -> None:
    plan = replace(PLAN, devices=(NULL, replace(NULL, container_path="/dev/other")))
    changes = {"/dev/other": None, "/dev/new": replace(NULL, container_path="/dev/new")}
    devices = adjustments.adjusted(plan, Adjustment(devices=changes), None, ()).devices
    assert [each.container_path for each in devices] == ["/dev/null2", "/dev/new"]


def test_cdi_device_adds_its_container_edits(tmp_path: Path) -> None:
    edits = {"env": ["A=1"], "deviceNodes": [{"path": "/dev/full"}]}
    described = {"cdiVersion": "0.6.0", "kind": "v.com/c", "devices": [{"name": "d", "containerEdits": edits}]}
    (tmp_path / "v.json").write_text(json.dumps(described))
    plan = adjustments.adjusted(PLAN, Adjustment(cdi_devices=("v.com/c=d",)), None, (tmp_path,))
    assert [each.container_path for each in plan.devices] == ["/dev/full"]
    assert [entry for each in plan.edits for entry in each.env] == ["A=1"]


def test_unknown_cdi_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"v\.com/c=d"):
        adjustments.adjusted(PLAN, Adjustment(cdi_devices=("v.com/c=d",)), None, (tmp_path,))


def test_mount_in_a_user_namespace_uses_an_idmapped_clone(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    plan = adjustments.adjusted(replace(PLAN, mappings=MAPPED), bind(tmp_path, "rbind"), staging, ())
    assert plan.adjustment is not None
    mount = plan.adjustment.mounts["/added"]
    assert mount is not None
    assert Path(mount.source).parent == staging
    assert adjustments.sources(bind(tmp_path, "rbind")) == (str(tmp_path),)


def test_mount_that_is_not_a_bind_mount_is_unchanged(tmp_path: Path) -> None:
    mount = Mount(destination="/t", type="tmpfs", source="tmpfs")
    plan = adjustments.adjusted(PLAN, Adjustment(mounts={"/t": mount}), tmp_path / "staging", ())
    assert plan.adjustment is not None
    assert plan.adjustment.mounts == {"/t": mount}


@pytest.mark.parametrize(
    ("adjustment", "staging", "words"),
    [
        (bind("/does/not/exist", "rbind"), None, "the mount at /added .* '/does/not/exist' does not exist"),
        (bind("relative", "rbind"), None, "does not exist"),
        (bind("/proc", "rbind", "rshared"), None, "not shared"),
    ],
)
def test_error_for_an_invalid_mount_names_its_destination(
    adjustment: Adjustment, staging: Path | None, words: str
) -> None:
    with pytest.raises(FailedPrecondition, match=words):
        adjustments.adjusted(PLAN, adjustment, staging, ())
