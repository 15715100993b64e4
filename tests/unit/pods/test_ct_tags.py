# SPDX-License-Identifier: Apache-2.0
"""The tags of a pod's CT."""

from __future__ import annotations

import pytest

from pvecri.config.settings import ProxmoxConfig
from pvecri.model import FrontKind, FrontSandbox, Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase
from pvecri.pods.sandbox.ct_tags import own_tags


def sandbox(namespace: str, kind: FrontKind | None = None) -> Sandbox:
    metadata = SandboxMetadata(name="web", namespace=namespace, uid="a1")
    front = FrontSandbox(kind=kind) if kind is not None else None
    config = SandboxConfig(metadata=metadata)
    return Sandbox(id=SandboxId("a" * 64), config=config, created_at=0, phase=SandboxPhase.READY, front=front)


@pytest.mark.parametrize(
    ("settings", "of", "expected"),
    [
        (ProxmoxConfig(), sandbox("shop"), ("pvecri",)),
        (ProxmoxConfig(tags=()), sandbox("shop"), ()),
        (ProxmoxConfig(tags=("A b", "a-b")), sandbox("shop"), ("a-b",)),
        (ProxmoxConfig(namespace_tags=True), sandbox("kube-system"), ("pvecri", "ns-kube-system")),
        (ProxmoxConfig(namespace_tags=True, tags=()), sandbox("a;b,c <d>"), ("ns-a-b-c-d-",)),
        (ProxmoxConfig(namespace_tags=True), sandbox("shop", FrontKind.CRIO), ("pvecri", "ns-shop")),
        (ProxmoxConfig(namespace_tags=True), sandbox("default", FrontKind.NONE), ("pvecri",)),
    ],
)
def test_tags(settings: ProxmoxConfig, of: Sandbox, expected: tuple[str, ...]) -> None:
    assert own_tags(settings, of) == expected
