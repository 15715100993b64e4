# SPDX-License-Identifier: Apache-2.0
"""The policy that decides which user namespace a pod gets: a pure function of request, node and configuration.

docs/user-namespaces.md describes it. A kubelet since 1.33 sends `userns_options { mode: NODE }` for every pod
whose `spec.hostUsers` is unset or true, so that mode does not mean that the pod needs the node's user namespace: a
pod requests that by annotation or runtime handler (decision 0065).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pvecri.config.settings import ID_RANGE, UserNamespacesConfig
from pvecri.errors import InvalidArgument, ResourceExhausted
from pvecri.model import (
    ContainerUser,
    IdMapping,
    NamespaceMode,
    ProxmoxInterface,
    SandboxConfig,
    UserNamespaceDecision,
    UserNamespaceKind,
    UserNamespaceReason,
)

ANNOTATION = "pvecri.io/user-namespace"
"""On a pod: `node`, `pod` or `shared`."""

DEFAULT_HANDLERS = ("", "pvecri")
NODE_HANDLER = "pvecri-node-users"
POD_HANDLER = "pvecri-pod-users"

EXTRA_IDS_MAX = 100
"""Extents besides the pod's range: uid_map accepts 340, but at most a page of text (user_namespaces(7))."""

ID_MAX = 0xFFFF_FFFE
"""The largest ID; 2^32 - 1 means "no ID" to the kernel."""

_KINDS = {"node": UserNamespaceKind.NODE, "pod": UserNamespaceKind.POD, "shared": UserNamespaceKind.CT}
_HANDLERS = {NODE_HANDLER: "node", POD_HANDLER: "pod"}


def handlers(settings: UserNamespacesConfig) -> tuple[str, ...]:
    """The runtime handlers (RuntimeClass) that exist; the empty one is the default."""
    return (*DEFAULT_HANDLERS, POD_HANDLER, *((NODE_HANDLER,) if settings.allow_node else ()))


@dataclass(frozen=True)
class Policy:
    """The configured part of the decision; `unprivileged` is proxmox.unprivileged."""

    settings: UserNamespacesConfig
    unprivileged: bool = True

    def decide(
        self,
        config: SandboxConfig,
        runtime_handler: str,
        *,
        missing_ids: Iterable[int] = (),
        unmappable: Sequence[str] = (),
    ) -> UserNamespaceDecision:
        """The pod's user namespace; the first rule that applies decides.

        `missing_ids` are IDs that containers of the pod's earlier sandboxes needed and lacked, `unmappable`
        descriptions of the pod's volumes that cannot be idmapped. InvalidArgument names the annotation or handler
        if the pod requests a user namespace that it cannot have.
        """
        request = self._request(config, runtime_handler)
        return (
            self._required(config)
            or self._of_client(config, request)
            or self._of_request(config, request, missing_ids)
            or self._of_volumes(unmappable)
            or self._default(config, missing_ids)
        )

    def _request(self, config: SandboxConfig, runtime_handler: str) -> _Request | None:
        """What the pod requests explicitly. Its annotation takes precedence over its RuntimeClass."""
        annotation = config.annotations.get(ANNOTATION)
        if annotation is None:
            name = _HANDLERS.get(runtime_handler)
            if name is None:
                return None
            reason = UserNamespaceReason.RUNTIME_HANDLER
            request = _Request(_KINDS[name], "runtime_handler", runtime_handler, reason)
        else:
            field = f"config.annotations[{ANNOTATION}]"
            if annotation not in _KINDS:
                raise InvalidArgument(field, f"{annotation!r} is none of {', '.join(_KINDS)}")
            request = _Request(_KINDS[annotation], field, annotation, UserNamespaceReason.ANNOTATION)
        if request.kind is UserNamespaceKind.NODE and not self.settings.allow_node:
            raise request.refused("pods may not choose the node's user namespace (user_namespaces.allow_node)")
        return request

    def _required(self, config: SandboxConfig) -> UserNamespaceDecision | None:
        """Pods that need the node's: the kernel allows what they do to the node only in its user namespace."""
        options = config.security.namespaces
        chosen = options.user is not None and options.user.mode is NamespaceMode.POD
        # With hostUsers: false a privileged container is privileged in its user namespace only.
        if config.security.privileged and not chosen:
            return _node(UserNamespaceReason.PRIVILEGED, "the pod is privileged")
        for mode, reason, name in (
            (options.network, UserNamespaceReason.HOST_NETWORK, "network"),
            (options.pid, UserNamespaceReason.HOST_PID, "PID"),
            (options.ipc, UserNamespaceReason.HOST_IPC, "IPC"),
        ):
            if mode is NamespaceMode.NODE:
                return _node(reason, f"the pod uses the node's {name} namespace")
        return None

    def _of_client(self, config: SandboxConfig, request: _Request | None) -> UserNamespaceDecision | None:
        """By `userns_options` of the CRI request: mode POD always, mode NODE only if the configuration says so."""
        user = config.security.namespaces.user
        if user is not None and user.mode is NamespaceMode.POD:
            if request is not None and request.kind is not UserNamespaceKind.POD:
                raise request.refused("contradicts userns_options.mode POD (hostUsers: false)")
            return UserNamespaceDecision(
                kind=UserNamespaceKind.POD,
                reason=UserNamespaceReason.KUBELET_MAPPING,
                detail="the client chose the IDs (hostUsers: false)",
                mappings=user.uids,
            )
        if not self.unprivileged:
            return _node(UserNamespaceReason.UNPRIVILEGED_OFF, "proxmox.unprivileged is false")
        if user is not None and self.settings.mode == "cri":
            return _node(UserNamespaceReason.CRI_NODE, "userns_options.mode is NODE, user_namespaces.mode is cri")
        return None

    def _of_request(
        self, config: SandboxConfig, request: _Request | None, missing_ids: Iterable[int]
    ) -> UserNamespaceDecision | None:
        if request is None:
            return None
        extra = () if request.kind is UserNamespaceKind.NODE else extra_ids(config, missing_ids)
        if request.kind is UserNamespaceKind.CT and extra:
            return None  # Proxmox's range ends at 65535: see _default
        return UserNamespaceDecision(
            kind=request.kind,
            reason=request.reason,
            detail=f"{request.field} is {request.value}",
            extra_ids=extra,
        )

    def _of_volumes(self, unmappable: Sequence[str]) -> UserNamespaceDecision | None:
        if not unmappable or not self.settings.allow_node:
            return None
        return _node(UserNamespaceReason.VOLUME, f"cannot be idmapped: {'; '.join(unmappable)}")

    def _default(self, config: SandboxConfig, missing_ids: Iterable[int]) -> UserNamespaceDecision:
        extra = extra_ids(config, missing_ids)
        if extra:
            return UserNamespaceDecision(
                kind=UserNamespaceKind.POD,
                reason=UserNamespaceReason.HIGH_IDS,
                detail=f"needs IDs above {ID_RANGE - 1}: {', '.join(map(str, extra))}",
                extra_ids=extra,
            )
        if self.settings.mode == "per-pod":
            detail = "user_namespaces.mode is per-pod"
            return UserNamespaceDecision(
                kind=UserNamespaceKind.POD, reason=UserNamespaceReason.PER_POD, detail=detail
            )
        return UserNamespaceDecision(detail="an unprivileged CT's")


@dataclass(frozen=True)
class _Request:
    """What a pod requests explicitly, and by which field."""

    kind: UserNamespaceKind
    field: str
    value: str
    reason: UserNamespaceReason

    def refused(self, problem: str) -> InvalidArgument:
        return InvalidArgument(self.field, f"{self.value!r}: {problem}")


def _node(reason: UserNamespaceReason, detail: str) -> UserNamespaceDecision:
    return UserNamespaceDecision(kind=UserNamespaceKind.NODE, reason=reason, detail=detail)


def check_interface(decision: UserNamespaceDecision, interface: ProxmoxInterface | None) -> None:
    """InvalidArgument for an interface by DHCP in a pod of kind POD.

    Proxmox's client looks for the interface in the CT's network namespace, which is not such a pod's.
    """
    if interface is not None and interface.ip == "dhcp" and decision.kind is UserNamespaceKind.POD:
        raise InvalidArgument(
            f"config.annotations[{ANNOTATION}]",
            f"a user namespace of the pod's own ({decision.detail}) cannot be combined with an interface with "
            "ip=dhcp; `shared` and `node` can",
        )


# -- IDs ------------------------------------------------------------------------------------------------------


def extra_ids(config: SandboxConfig, missing_ids: Iterable[int] = ()) -> tuple[int, ...]:
    """The IDs above the default range that a pod is known to need, ascending.

    The kubelet copies the pod's `securityContext.runAsUser`, `runAsGroup`, `fsGroup` and `supplementalGroups` into
    the sandbox's. InvalidArgument if there are more than EXTRA_IDS_MAX.
    """
    security = config.security
    named = (security.run_as_user, security.run_as_group, *security.supplemental_groups, *missing_ids)
    wanted = sorted({each for each in named if each is not None and ID_RANGE <= each <= ID_MAX})
    if len(wanted) > EXTRA_IDS_MAX:
        raise InvalidArgument(
            "config.linux.security_context.supplemental_groups",
            f"{len(wanted)} IDs above {ID_RANGE - 1} are more than the {EXTRA_IDS_MAX} that a user namespace can "
            f"have here; the annotation {ANNOTATION}: node does without one",
        )
    return tuple(wanted)


def missing(user: ContainerUser, mappings: Sequence[IdMapping]) -> tuple[int, ...]:
    """The IDs of a container's user that a user namespace does not map; none for the node's."""
    return unmapped({user.uid, user.gid, *user.groups}, mappings)


def unmapped(ids: Iterable[int], mappings: Sequence[IdMapping]) -> tuple[int, ...]:
    """The IDs that a user namespace does not map, ascending; none without mappings, which is the node's."""
    if not mappings:
        return ()
    return tuple(sorted(each for each in set(ids) if not any(row.has(each) for row in mappings)))


def own_mappings(
    decision: UserNamespaceDecision, settings: UserNamespacesConfig, used: Iterable[IdMapping]
) -> tuple[IdMapping, ...]:
    """The mappings of a user namespace that pvecri creates: 64 Ki IDs from 0, and extents for the extra IDs.

    The host IDs are from user_namespaces.host_ids and disjoint from those `used`; ResourceExhausted if there are
    none left.
    """
    length = ID_RANGE * (2 if decision.extra_ids else 1)  # the second block is for the extra IDs
    start = _free(length, settings, used)
    extents = _extents(decision.extra_ids, start + ID_RANGE)
    return (IdMapping(container_id=0, host_id=start, length=ID_RANGE), *extents)


def _free(length: int, settings: UserNamespacesConfig, used: Iterable[IdMapping]) -> int:
    """The lowest free block of host IDs, at a multiple of 64 Ki from the first."""
    pool = settings.host_ids
    taken = {
        (each.host_id + offset - pool.first) // ID_RANGE
        for each in used
        # A kubelet's mapping need not begin at a block of ours: its last ID may be in one more.
        for offset in (*range(0, each.length, ID_RANGE), each.length - 1)
    }
    blocks = length // ID_RANGE
    for first in range((pool.last - pool.first + 1) // ID_RANGE - blocks + 1):
        if not taken.intersection(range(first, first + blocks)):
            return pool.first + first * ID_RANGE
    raise ResourceExhausted(
        f"all host IDs from {pool.first} to {pool.last} are in use by pods (user_namespaces.host_ids)"
    )


def _extents(ids: Iterable[int], host_id: int) -> Iterator[IdMapping]:
    """One extent for each run of consecutive IDs."""
    run: list[int] = []
    # None ends the last run.
    for each in (*ids, None):
        if run and each != run[-1] + 1:
            yield IdMapping(container_id=run[0], host_id=host_id, length=len(run))
            host_id += len(run)
            run = []
        if each is not None:
            run.append(each)
