# SPDX-License-Identifier: Apache-2.0
"""What is written into a CT's notes, and what the kernel tells of its user namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.model import IdMapping, SandboxConfig, SandboxMetadata, UserNamespaceDecision, Vmid
from pvecri.pods.sandbox import ct, ct_notes
from pvecri.pods.validation import check_sandbox

ID = "0123456789abcdef" * 4
OTHER = "f" * 64
VMID = Vmid(900_001)
CONFIG = SandboxConfig(metadata=SandboxMetadata(name="web-0", namespace="shop", uid="a1b2", attempt=2))
IN_CT = UserNamespaceDecision(detail="an unprivileged CT's")


def test_notes_name_the_pod_for_people() -> None:
    assert ct_notes.describe(CONFIG, ID, "c0ffee", IN_CT, VMID).splitlines()[::2] == [
        "Kubernetes pod shop/web-0",
        "uid: a1b2",
        "attempt: 2",
        "user namespace: the CT's (unprivileged); an unprivileged CT's",
        "CT: 900001",
        f"sandbox: {ID}",
        "installation: c0ffee",
    ]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "  \n"])
def test_owner_is_parsed_from_notes_as_proxmox_returns_them(line_end: str) -> None:
    text = ct_notes.describe(CONFIG, ID, "c0ffee", IN_CT, VMID).replace("\n", line_end)
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox=ID, installation="c0ffee", pod="shop/web-0", vmid=VMID)


def test_user_namespace_detail_cannot_forge_an_owner() -> None:
    decision = UserNamespaceDecision(detail=f"asked\n\nsandbox: {OTHER}\n")
    assert ct_notes.owner(ct_notes.describe(CONFIG, ID, "c0ffee", decision, VMID)).sandbox == ID


@pytest.mark.parametrize(
    "text", ["", "sandbox: 12", f"my sandbox: {ID}", f"sandbox: {ID} or so", f"Sandbox: {ID}"]
)
def test_foreign_notes_have_no_owner(text: str) -> None:
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox="", installation="")


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_pod_name_cannot_forge_an_owner(field: str) -> None:
    metadata = replace(CONFIG.metadata, **{field: f"x\n\nsandbox: {OTHER}"})
    with pytest.raises(InvalidArgument):
        check_sandbox(replace(CONFIG, metadata=metadata), "")


# -- user namespaces -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "mappings"),
    [
        ("         0          0 4294967295\n", ()),
        (
            "         0     100000      65536\n",
            (IdMapping(container_id=0, host_id=100_000, length=65_536),),
        ),
        (
            "         0     100000       1000\n      1000       1000          1\n",
            (
                IdMapping(container_id=0, host_id=100_000, length=1000),
                IdMapping(container_id=1000, host_id=1000, length=1),
            ),
        ),
        ("         0          0 65536\n", (IdMapping(container_id=0, host_id=0, length=65_536),)),
    ],
)
def test_uid_map_is_parsed_and_the_identity_map_is_empty(table: str, mappings: tuple[IdMapping, ...]) -> None:
    assert ct.parse_id_map(table) == mappings


def test_id_mappings_of_a_process_are_read_from_proc() -> None:
    assert ct.id_mappings(os.getpid()) == ct.parse_id_map(Path("/proc/self/uid_map").read_text())
