# SPDX-License-Identifier: Apache-2.0
"""What is written into a CT's notes, and what the kernel tells of its user namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.model import IdMapping, SandboxConfig, SandboxMetadata, UserNamespaceDecision
from pvecri.pods.sandbox import ct, ct_notes
from pvecri.pods.validation import check_sandbox

ID = "0123456789abcdef" * 4
OTHER = "f" * 64
CONFIG = SandboxConfig(metadata=SandboxMetadata(name="web-0", namespace="shop", uid="a1b2", attempt=2))
IN_CT = UserNamespaceDecision(detail="an unprivileged CT's")


def test_a_cts_notes_tell_a_person_which_pod_it_is() -> None:
    assert ct_notes.describe(CONFIG, ID, "c0ffee", IN_CT).splitlines()[::2] == [
        "Kubernetes pod shop/web-0",
        "uid: a1b2",
        "attempt: 2",
        "user namespace: the CT's (unprivileged); an unprivileged CT's",
        f"sandbox: {ID}",
        "installation: c0ffee",
    ]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "  \n"])
def test_a_cts_notes_tell_us_whose_it_is_as_proxmox_gives_them_back(line_end: str) -> None:
    text = ct_notes.describe(CONFIG, ID, "c0ffee", IN_CT).replace("\n", line_end)
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox=ID, installation="c0ffee")


def test_what_a_request_says_of_its_user_namespace_names_no_owner() -> None:
    decision = UserNamespaceDecision(detail=f"asked\n\nsandbox: {OTHER}\n")
    assert ct_notes.owner(ct_notes.describe(CONFIG, ID, "c0ffee", decision)).sandbox == ID


@pytest.mark.parametrize(
    "text", ["", "sandbox: 12", f"my sandbox: {ID}", f"sandbox: {ID} or so", f"Sandbox: {ID}"]
)
def test_notes_that_others_wrote_name_no_owner(text: str) -> None:
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox="", installation="")


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_no_pod_can_pass_for_another_by_its_name(field: str) -> None:
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
def test_the_kernels_table_of_ids_becomes_mappings_and_the_nodes_own_none(
    table: str, mappings: tuple[IdMapping, ...]
) -> None:
    assert ct.parse_id_map(table) == mappings


def test_the_mappings_of_a_process_are_read_from_the_kernel() -> None:
    assert ct.id_mappings(os.getpid()) == ct.parse_id_map(Path("/proc/self/uid_map").read_text())
