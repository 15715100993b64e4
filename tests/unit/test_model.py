# SPDX-License-Identifier: Apache-2.0
"""The model's values are immutable and round-trip through JSON."""

from __future__ import annotations

import msgspec
import pytest
from support.filled import filled

from pvecri import model
from pvecri.model import (
    ContainerMetadata,
    ContainerState,
    GroupsPolicy,
    HugepageLimit,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    ProfileKind,
    Propagation,
    RegistryAuth,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    SandboxState,
    UserNamespaceDecision,
    UserNamespaceKind,
    UserNamespaceReason,
    Value,
)

VALUES = [kind for kind in vars(model).values() if isinstance(kind, type) and issubclass(kind, Value)]
KINDS = [kind for kind in VALUES if kind is not Value]


def sandbox(phase: SandboxPhase = SandboxPhase.READY, *mappings: IdMapping) -> Sandbox:
    metadata = SandboxMetadata(name="web", namespace="shop", uid="a1", attempt=3)
    config = SandboxConfig(metadata=metadata)
    return Sandbox(id=SandboxId("f" * 64), config=config, created_at=1, phase=phase, mappings=mappings)


@pytest.mark.parametrize("kind", KINDS)
def test_value_with_all_fields_set_round_trips_through_json(kind: type[Value]) -> None:
    value = filled(kind)
    assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value


@pytest.mark.parametrize("kind", KINDS)
def test_set_fields_are_encoded(kind: type[Value]) -> None:
    written = msgspec.json.decode(msgspec.json.encode(filled(kind)))
    assert set(written) == set(kind.__struct_fields__)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_cannot_be_changed(kind: type[Value]) -> None:
    value = filled(kind)
    for field in kind.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(value, field, getattr(value, field))


def test_missing_fields_of_an_older_row_get_defaults() -> None:
    older = b'{"metadata": {"name": "web", "namespace": "shop", "uid": "a1"}}'
    read = msgspec.json.decode(older, type=SandboxConfig)
    assert read == SandboxConfig(metadata=SandboxMetadata(name="web", namespace="shop", uid="a1"))


def test_unknown_fields_of_a_newer_row_are_ignored() -> None:
    newer = b'{"name": "main", "attempt": 2, "colour": "blue"}'
    assert msgspec.json.decode(newer, type=ContainerMetadata) == ContainerMetadata(name="main", attempt=2)


UNLESS_TOLD = {
    "name": "eth0",
    "network": NamespaceMode.POD,
    "pid": NamespaceMode.POD,
    "ipc": NamespaceMode.POD,
    "mode": NamespaceMode.NODE,
    "kind": ProfileKind.RUNTIME_DEFAULT,
    "groups_policy": GroupsPolicy.MERGE,
    "propagation": Propagation.PRIVATE,
    "state": ContainerState.CREATED,
}
OF_DECISION = {"kind": UserNamespaceKind.CT, "reason": UserNamespaceReason.DEFAULT}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_cri(kind: type[Value]) -> None:
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT and not isinstance(field.default, Value)
    }
    something = {name: default for name, default in defaults.items() if default}
    usual = OF_DECISION if kind is UserNamespaceDecision else UNLESS_TOLD
    assert something == {name: usual[name] for name in defaults if name in usual}


# -- resources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", Resources.__struct_fields__)
def test_set_limit_replaces_the_old_one(field: str) -> None:
    before, wanted = filled(Resources), getattr(filled(Resources), field)
    change = msgspec.structs.replace(Resources(), **{field: wanted})
    assert getattr(Resources().updated(change), field) == wanted
    assert before.updated(change) == before


def test_unset_limit_keeps_the_old_one() -> None:
    before = Resources(
        memory_limit=1 << 30, cpu_shares=512, hugepage_limits=(HugepageLimit(page_size="2MB", limit=1),)
    )
    after = before.updated(Resources(memory_limit=2 << 30))
    assert after == msgspec.structs.replace(before, memory_limit=2 << 30)


# -- what values tell of themselves --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (SandboxPhase.CREATING, SandboxState.NOTREADY),
        (SandboxPhase.READY, SandboxState.READY),
        (SandboxPhase.STOPPED, SandboxState.NOTREADY),
        (SandboxPhase.REMOVING, SandboxState.NOTREADY),
    ],
)
def test_only_a_ready_sandbox_has_state_ready(phase: SandboxPhase, state: SandboxState) -> None:
    assert sandbox(phase).state is state


def test_sandbox_name_has_all_metadata() -> None:
    assert sandbox().name == "web_shop_a1_3"


def test_root_uid_is_the_host_id_of_id_0() -> None:
    user = IdMapping(container_id=1000, host_id=1000, length=1)
    root = IdMapping(container_id=0, host_id=100_000, length=1000)
    assert sandbox(SandboxPhase.READY, user, root).root_uid == 100_000
    assert sandbox().root_uid == 0


@pytest.mark.parametrize("field", ["network", "pid", "ipc"])
def test_uses_host_if_any_namespace_is_the_nodes(field: str) -> None:
    assert not NamespaceOptions().uses_host
    assert msgspec.structs.replace(NamespaceOptions(), **{field: NamespaceMode.NODE}).uses_host


def test_repr_hides_credentials() -> None:
    secrets = filled(RegistryAuth)
    shown = repr(secrets)
    for field in ("password", "auth", "identity_token", "registry_token"):
        assert getattr(secrets, field) not in shown
