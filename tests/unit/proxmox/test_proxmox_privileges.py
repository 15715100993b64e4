# SPDX-License-Identifier: Apache-2.0
"""What the account needs is known, and what it lacks is found."""

from __future__ import annotations

from pvecri.config.settings import ProxmoxConfig
from pvecri.proxmox import privileges


def test_with_a_pool_nothing_is_needed_on_other_guests() -> None:
    wanted = privileges.needed(ProxmoxConfig(pool="k8s", storage="lvm"), "pve")

    assert wanted == {
        "/pool/k8s": privileges.POD_PRIVILEGES,
        "/nodes/pve": {"Sys.Audit"},
        "/storage/lvm": {"Datastore.AllocateSpace"},
        "/storage/local": {"Datastore.AllocateTemplate", "Datastore.Audit"},
    }


def test_one_storage_for_both_needs_both() -> None:
    wanted = privileges.needed(ProxmoxConfig(), "pve")

    assert wanted["/storage/local"] == {"Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit"}
    assert "/vms" in wanted


def test_only_privileged_cts_need_sys_modify() -> None:
    assert "/" not in privileges.needed(ProxmoxConfig(), "pve")
    assert privileges.needed(ProxmoxConfig(unprivileged=False), "pve")["/"] == {"Sys.Modify"}


def test_missing_privileges_are_listed_by_path() -> None:
    wanted = {"/vms": frozenset({"VM.Audit", "VM.Allocate"}), "/": frozenset({"Sys.Modify"})}

    assert privileges.missing(wanted, {"/vms": frozenset({"VM.Audit"})}) == ["/: Sys.Modify", "/vms: VM.Allocate"]
    assert privileges.missing(wanted, wanted) == []


def test_privileges_come_from_the_nearest_path_above_if_they_propagate() -> None:
    granted = {"/": {"Sys.Audit": True, "VM.Audit": False}, "/vms": {"VM.Allocate": False}}

    assert privileges.effective("/vms", granted) == {"VM.Allocate"}
    assert privileges.effective("/vms/100", granted) == frozenset()
    assert privileges.effective("/storage/local", granted) == {"Sys.Audit"}
    assert privileges.effective("/", granted) == {"Sys.Audit", "VM.Audit"}
    assert privileges.effective("/x", {}) == frozenset()


def test_images_as_templates_need_more_on_their_storage_and_the_network() -> None:
    wanted = privileges.needed(ProxmoxConfig(), "pve", "images")

    assert wanted["/storage/images"] == {"Datastore.Allocate", "Datastore.AllocateTemplate", "Datastore.Audit"}
    assert wanted["/nodes/pve"] == {"Sys.Audit", "Sys.AccessNetwork"}
