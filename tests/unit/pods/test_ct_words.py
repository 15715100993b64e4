# SPDX-License-Identifier: Apache-2.0
"""What is written into a CT's notes, and what the kernel tells of its user namespace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.model import (
    Container,
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    ContainerState,
    FrontKind,
    FrontSandbox,
    IdMapping,
    ImageId,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    UserNamespaceDecision,
    Vmid,
)
from pvecri.pods.sandbox import ct, ct_notes
from pvecri.pods.validation import check_sandbox
from pvecri.proxmox.ctspec import DESCRIPTION_MAX

ID = SandboxId("0123456789abcdef" * 4)
OTHER = "f" * 64
VMID = Vmid(900_001)
METADATA = SandboxMetadata(name="web-0", namespace="shop", uid="a1b2", attempt=2)
SANDBOX = Sandbox(
    id=ID,
    config=SandboxConfig(metadata=METADATA),
    created_at=1_800_000_000 * 10**9,
    phase=SandboxPhase.READY,
    vmid=VMID,
    user_namespace=UserNamespaceDecision(detail="an unprivileged CT's"),
)
NOW = SANDBOX.created_at + 61 * 10**9


def container(name: str = "web", image: str = "docker.io/library/nginx:1.27", **values: Any) -> Container:
    made = Container(
        id=ContainerId("c" * 64),
        sandbox_id=ID,
        config=ContainerConfig(metadata=ContainerMetadata(name=name), image="sha256:beef"),
        image_id=ImageId("sha256:beef"),
        image_reference="",
        image_name=image,
        created_at=1,
    )
    return replace(made, **values)


def describe(*containers: Container, **values: Any) -> str:
    return ct_notes.describe(replace(SANDBOX, **values), "c0ffee", "pve1", containers, NOW)


def named(**values: str) -> SandboxConfig:
    return SandboxConfig(metadata=replace(METADATA, **values))


def test_notes_name_the_pod_for_people() -> None:
    exited = container("init", "busybox", state=ContainerState.EXITED, exit_code=137)
    assert describe(container(state=ContainerState.RUNNING), exited).splitlines() == [
        "**managed by pvecri: use kubectl**",
        "",
        "Kubernetes pod `shop/web-0`",
        "",
        "node: `pve1`",
        "",
        "uid: `a1b2`",
        "",
        "attempt: 2",
        "",
        "created: 2027-01-15 08:00:00 UTC, by pvecri for the CRI",
        "",
        "user namespace: the CT's (unprivileged); `an unprivileged CT's`",
        "",
        "CT: 900001",
        "",
        f"sandbox: {ID}",
        "",
        "installation: c0ffee",
        "",
        "containers at 2027-01-15 08:01:01 UTC:",
        "",
        "- `web` running: `docker.io/library/nginx:1.27`",
        "- `init` exited with 137: `busybox`",
    ]


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (FrontKind.CRIO, ["**managed by pvecri: use kubectl**", "Kubernetes pod `shop/web-0` of CRI-O"]),
        (
            FrontKind.NONE,
            ["**managed by pvecri: use the client that created it**", "Container `web-0` of OCI client"],
        ),
    ],
)
def test_notes_name_the_front(kind: FrontKind, lines: list[str]) -> None:
    assert describe(front=FrontSandbox(kind=kind)).splitlines()[:4:2] == lines


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "  \n"])
def test_owner_is_parsed_from_notes_as_proxmox_returns_them(line_end: str) -> None:
    text = describe(container()).replace("\n", line_end)
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox=ID, installation="c0ffee", pod="shop/web-0", vmid=VMID)


def test_owner_is_parsed_from_notes_of_an_earlier_version() -> None:
    text = f"Kubernetes pod shop/web-0 of CRI-O\n\nuid: a1b2\n\nsandbox: {ID}\n\ninstallation: c0ffee\n"
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox=ID, installation="c0ffee", pod="shop/web-0")


FORGED = f"x\n\nsandbox: {OTHER}\n\n<img src=x onerror=alert(1)>`[a](http://b)`\x1b[0m\u202e"


@pytest.mark.parametrize(
    "text",
    [
        describe(user_namespace=UserNamespaceDecision(detail=FORGED)),
        describe(config=named(name=FORGED)),
        describe(config=named(namespace=FORGED)),
        describe(config=named(uid=FORGED)),
        describe(container(FORGED)),
        describe(container(image=FORGED)),
    ],
    ids=["detail", "name", "namespace", "uid", "container", "image"],
)
def test_text_of_a_request_is_neither_markdown_nor_html_nor_a_line_of_its_own(text: str) -> None:
    assert ct_notes.owner(text).sandbox == ID
    [line] = (line for line in text.splitlines() if "onerror" in line)
    outside, spans = line.split("`")[::2], line.split("`")[1::2]
    assert "<" in "".join(spans)
    assert "<" not in "".join(outside)
    assert all(each.isprintable() for each in text.splitlines())


@pytest.mark.parametrize("number", [1, 60, 1000])
def test_notes_are_not_longer_than_proxmox_allows(number: int) -> None:
    longest = "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 253
    config = named(name=longest, namespace=longest, uid=longest)
    text = describe(*[container(longest, longest) for _ in range(number)], config=config)
    assert len(text.encode()) <= DESCRIPTION_MAX
    assert ct_notes.owner(text).sandbox == ID
    listed = [line for line in text.splitlines() if line.startswith("- `")]
    left = number - len(listed)
    assert text.endswith(f"- and {left} more\n") if left else number == 1


def test_fingerprint_changes_with_the_containers_and_not_with_the_time() -> None:
    def fingerprint(*containers: Container) -> str:
        return ct_notes.fingerprint(SANDBOX, "c0ffee", "pve1", containers)

    assert fingerprint(container()) == fingerprint(container())
    assert (
        len({fingerprint(), fingerprint(container()), fingerprint(container(state=ContainerState.RUNNING))}) == 3
    )


@pytest.mark.parametrize(
    "text", ["", "sandbox: 12", f"my sandbox: {ID}", f"sandbox: {ID} or so", f"Sandbox: {ID}"]
)
def test_foreign_notes_have_no_owner(text: str) -> None:
    assert ct_notes.owner(text) == ct_notes.Owner(sandbox="", installation="")


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_pod_name_cannot_forge_an_owner(field: str) -> None:
    with pytest.raises(InvalidArgument):
        check_sandbox(named(**{field: f"x\n\nsandbox: {OTHER}"}), "")


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
