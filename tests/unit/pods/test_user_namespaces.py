# SPDX-License-Identifier: Apache-2.0
"""The policy of docs/user-namespaces.md, a row a case."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pvecri.config.settings import ID_RANGE, HostIds, UserNamespacesConfig
from pvecri.errors import InvalidArgument, ResourceExhausted
from pvecri.model import (
    ContainerUser,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    ProxmoxInterface,
    SandboxConfig,
    SandboxMetadata,
    SandboxSecurity,
    UserNamespace,
    UserNamespaceDecision,
    UserNamespaceKind,
    UserNamespaceReason,
)
from pvecri.pods import user_namespaces
from pvecri.pods.user_namespaces import ANNOTATION, NODE_HANDLER, POD_HANDLER, Policy

CT, POD, NODE = UserNamespaceKind.CT, UserNamespaceKind.POD, UserNamespaceKind.NODE
WHY = UserNamespaceReason
KUBELETS = (IdMapping(container_id=0, host_id=4_072_865_792, length=ID_RANGE),)
UNSET: dict[str, Any] = {}
HOST_USERS = {"user": UserNamespace(mode=NamespaceMode.NODE)}
NO_HOST_USERS = {"user": UserNamespace(mode=NamespaceMode.POD, uids=KUBELETS, gids=KUBELETS)}
SHARED, PER_POD, CRI = (Policy(UserNamespacesConfig(mode=mode)) for mode in ("shared", "per-pod", "cri"))


def pod(annotation: str = "", modes: dict[str, Any] = UNSET, **security: Any) -> SandboxConfig:
    return SandboxConfig(
        metadata=SandboxMetadata(name="web", namespace="shop", uid="a1"),
        annotations={ANNOTATION: annotation} if annotation else {},
        security=SandboxSecurity(namespaces=NamespaceOptions(**modes), **security),
    )


TABLE = [
    # the kubelet's plain pod, and crictl's
    (SHARED, pod(modes=HOST_USERS), "", CT, WHY.DEFAULT),
    (SHARED, pod(), "", CT, WHY.DEFAULT),
    (SHARED, pod(), "pvecri", CT, WHY.DEFAULT),
    (SHARED, pod(modes={**HOST_USERS, "pid": NamespaceMode.POD}), "", CT, WHY.DEFAULT),
    # what cannot be in a user namespace of its own
    (SHARED, pod(modes=HOST_USERS, privileged=True), "", NODE, WHY.PRIVILEGED),
    (SHARED, pod(modes={**HOST_USERS, "network": NamespaceMode.NODE}), "", NODE, WHY.HOST_NETWORK),
    (SHARED, pod(modes={**HOST_USERS, "pid": NamespaceMode.NODE}), "", NODE, WHY.HOST_PID),
    (SHARED, pod(modes={**HOST_USERS, "ipc": NamespaceMode.NODE}), "", NODE, WHY.HOST_IPC),
    (PER_POD, pod(modes=HOST_USERS, privileged=True), "", NODE, WHY.PRIVILEGED),
    # hostUsers: false, in every mode
    *((policy, pod(modes=NO_HOST_USERS), "", POD, WHY.KUBELET_MAPPING) for policy in (SHARED, PER_POD, CRI)),
    (SHARED, pod("pod", modes=NO_HOST_USERS), "", POD, WHY.KUBELET_MAPPING),
    (SHARED, pod(modes=NO_HOST_USERS, privileged=True), "", POD, WHY.KUBELET_MAPPING),
    (SHARED, pod(modes=NO_HOST_USERS, run_as_user=1_000_650_000), "", POD, WHY.KUBELET_MAPPING),
    # what a pod asks for itself
    (SHARED, pod("node", modes=HOST_USERS), "", NODE, WHY.ANNOTATION),
    (SHARED, pod("pod", modes=HOST_USERS), "", POD, WHY.ANNOTATION),
    (PER_POD, pod("shared", modes=HOST_USERS), "", CT, WHY.ANNOTATION),
    (CRI, pod("node"), "", NODE, WHY.ANNOTATION),
    (SHARED, pod(modes=HOST_USERS), NODE_HANDLER, NODE, WHY.RUNTIME_HANDLER),
    (SHARED, pod(modes=HOST_USERS), POD_HANDLER, POD, WHY.RUNTIME_HANDLER),
    (SHARED, pod("pod", modes=HOST_USERS), NODE_HANDLER, POD, WHY.ANNOTATION),
    (SHARED, pod("pod", privileged=True), "", NODE, WHY.PRIVILEGED),
    # IDs that Proxmox's range lacks
    (SHARED, pod(modes=HOST_USERS, run_as_user=1_000_650_000), "", POD, WHY.HIGH_IDS),
    (SHARED, pod(modes=HOST_USERS, run_as_group=65_536), "", POD, WHY.HIGH_IDS),
    (SHARED, pod(modes=HOST_USERS, supplemental_groups=(1000, 4_294_967_294)), "", POD, WHY.HIGH_IDS),
    (SHARED, pod(modes=HOST_USERS, run_as_user=65_535), "", CT, WHY.DEFAULT),
    (SHARED, pod("shared", run_as_user=70_000), "", POD, WHY.HIGH_IDS),
    (SHARED, pod("node", run_as_user=70_000), "", NODE, WHY.ANNOTATION),
    # the modes
    (PER_POD, pod(modes=HOST_USERS), "", POD, WHY.PER_POD),
    (PER_POD, pod(modes=HOST_USERS, run_as_user=70_000), "", POD, WHY.HIGH_IDS),
    (CRI, pod(modes=HOST_USERS), "", NODE, WHY.CRI_NODE),
    (CRI, pod(), "", CT, WHY.DEFAULT),
    (CRI, pod(run_as_user=70_000), "", POD, WHY.HIGH_IDS),
    (Policy(UserNamespacesConfig(), unprivileged=False), pod(), "", NODE, WHY.UNPRIVILEGED_OFF),
    (Policy(UserNamespacesConfig(), unprivileged=False), pod(modes=NO_HOST_USERS), "", POD, WHY.KUBELET_MAPPING),
]


@pytest.mark.parametrize(("policy", "config", "handler", "kind", "reason"), TABLE)
def test_the_first_rule_that_applies_decides(
    policy: Policy,
    config: SandboxConfig,
    handler: str,
    kind: UserNamespaceKind,
    reason: UserNamespaceReason,
) -> None:
    decision = policy.decide(config, handler)
    assert (decision.kind, decision.reason) == (kind, reason)
    assert decision.detail


def test_only_the_kubelets_mapping_is_taken_from_the_request() -> None:
    assert SHARED.decide(pod(modes=NO_HOST_USERS), "").mappings == KUBELETS
    assert SHARED.decide(pod("pod"), "").mappings == ()


def test_a_volume_that_cannot_be_idmapped_moves_a_pod_to_the_nodes_user_namespace() -> None:
    decision = SHARED.decide(pod(modes=HOST_USERS), "", unmappable=["/mnt/share (nfs4)"])
    assert (decision.kind, decision.reason) == (NODE, WHY.VOLUME)
    assert "/mnt/share (nfs4)" in decision.detail


def test_allow_node_false_keeps_pods_out_of_the_nodes_user_namespace() -> None:
    policy = Policy(UserNamespacesConfig(allow_node=False))
    assert policy.decide(pod(), "", unmappable=["/mnt/share (nfs4)"]).kind is CT
    assert policy.decide(pod(privileged=True), "").kind is NODE


@pytest.mark.parametrize(
    ("config", "handler", "field"),
    [
        (pod("node"), "", rf"^config.annotations\[{ANNOTATION}\]: 'node': .*user_namespaces.allow_node"),
        (pod(), NODE_HANDLER, rf"^runtime_handler: '{NODE_HANDLER}': .*user_namespaces.allow_node"),
        (pod("host"), "", rf"^config.annotations\[{ANNOTATION}\]: 'host' is none of node, pod, shared"),
        (pod("node", modes=NO_HOST_USERS), "", "."),
        (pod("shared", modes=NO_HOST_USERS), "", "contradicts userns_options.mode POD"),
    ],
)
def test_error_for_a_refused_request_names_the_field(config: SandboxConfig, handler: str, field: str) -> None:
    policy = Policy(UserNamespacesConfig(allow_node=False))
    with pytest.raises(InvalidArgument, match=field):
        policy.decide(config, handler)


def test_node_handler_exists_only_with_allow_node() -> None:
    assert NODE_HANDLER in user_namespaces.handlers(UserNamespacesConfig())
    assert NODE_HANDLER not in user_namespaces.handlers(UserNamespacesConfig(allow_node=False))


@pytest.mark.parametrize(("kind", "ip", "refused"), [(POD, "dhcp", True), (CT, "dhcp", False), (POD, "", False)])
def test_an_address_by_dhcp_needs_the_cts_own_network(kind: UserNamespaceKind, ip: str, refused: bool) -> None:
    decision = UserNamespaceDecision(kind=kind, detail="user_namespaces.mode is per-pod")
    user_namespaces.check_interface(decision, None)
    with pytest.raises(InvalidArgument, match="ip=dhcp") if refused else nullcontext():
        user_namespaces.check_interface(decision, ProxmoxInterface(bridge="vmbr1", ip=ip))


# -- IDs ------------------------------------------------------------------------------------------------------


def test_more_high_ids_than_there_are_extents_are_refused() -> None:
    groups = tuple(range(70_000, 70_202, 2))
    with pytest.raises(InvalidArgument, match=r"supplemental_groups: 101 IDs above 65535"):
        SHARED.decide(pod(supplemental_groups=groups), "")


def test_ids_that_an_earlier_sandbox_lacked_are_in_the_next_ones_user_namespace() -> None:
    decision = SHARED.decide(pod(), "", missing_ids=[1_000_650_001, 1_000_650_000])
    assert (decision.kind, decision.extra_ids) == (POD, (1_000_650_000, 1_000_650_001))


def test_consecutive_high_ids_share_an_extent() -> None:
    decision = UserNamespaceDecision(extra_ids=(70_000, 70_001, 4_000_000_000))
    settings = UserNamespacesConfig(host_ids=HostIds(first=1 << 20, last=(1 << 21) - 1))
    assert user_namespaces.own_mappings(decision, settings, []) == (
        IdMapping(container_id=0, host_id=1 << 20, length=ID_RANGE),
        IdMapping(container_id=70_000, host_id=(1 << 20) + ID_RANGE, length=2),
        IdMapping(container_id=4_000_000_000, host_id=(1 << 20) + ID_RANGE + 2, length=1),
    )


@given(
    decisions=st.lists(st.sets(st.integers(ID_RANGE, user_namespaces.ID_MAX), max_size=5), max_size=12),
    strange=st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(1, 1 << 20)), max_size=3),
)
def test_no_two_pods_get_the_same_id_of_the_node(
    decisions: list[set[int]], strange: list[tuple[int, int]]
) -> None:
    settings = UserNamespacesConfig(host_ids=HostIds(first=1 << 20, last=(1 << 20) + 40 * ID_RANGE - 1))
    used = [IdMapping(container_id=0, host_id=host_id, length=length) for host_id, length in strange]
    for extra in decisions:
        decision = UserNamespaceDecision(extra_ids=tuple(sorted(extra)))
        try:
            mappings = user_namespaces.own_mappings(decision, settings, used)
        except ResourceExhausted:
            assert strange
            return
        for each in mappings:
            assert settings.host_ids.first <= each.host_id
            assert each.host_id + each.length - 1 <= settings.host_ids.last
            for other in used:
                assert each.host_id + each.length <= other.host_id or other.host_id + other.length <= each.host_id
        assert user_namespaces.unmapped(extra | {0, ID_RANGE - 1}, mappings) == ()
        used += mappings


def test_error_for_exhausted_host_ids_names_the_setting() -> None:
    settings = UserNamespacesConfig(host_ids=HostIds(first=1 << 20, last=(1 << 20) + ID_RANGE - 1))
    used = user_namespaces.own_mappings(UserNamespaceDecision(), settings, [])
    with pytest.raises(ResourceExhausted, match=r"user_namespaces\.host_ids"):
        user_namespaces.own_mappings(UserNamespaceDecision(), settings, used)


def test_missing_ids_of_a_container_are_listed() -> None:
    user = ContainerUser(uid=1_000_650_000, gid=0, groups=(0, 70_000))
    mappings = (IdMapping(container_id=0, host_id=100_000, length=ID_RANGE),)
    assert user_namespaces.missing(user, mappings) == (70_000, 1_000_650_000)
    assert user_namespaces.missing(user, ()) == ()
    assert user_namespaces.missing(replace(user, uid=65_535, groups=()), mappings) == ()
