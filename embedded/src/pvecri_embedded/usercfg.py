# SPDX-License-Identifier: AGPL-3.0-or-later
"""Users, groups, tokens, roles and the access control list, and the rights that follow from them. No I/O.

By Proxmox's rules (PVE::AccessControl, PVE::RPCEnvironment). What the API changes is plain data, which
`to_json` and `from_json` keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ROOT = "root@pam"
NO_ACCESS = "NoAccess"
ADMINISTRATOR = "Administrator"

_ADMIN = {
    "VM": (
        "VM.Allocate", "VM.Clone", "VM.Config.CPU", "VM.Config.Disk", "VM.Config.HWType", "VM.Config.Memory",
        "VM.Config.Network", "VM.Config.Options", "VM.GuestAgent.Unrestricted", "VM.Migrate", "VM.Replicate",
        "VM.Snapshot", "VM.Snapshot.Rollback",
    ),
    "Sys": ("Sys.Console", "Sys.Syslog"),
    "Datastore": ("Datastore.Allocate", "Datastore.AllocateTemplate"),
    "SDN": ("SDN.Allocate", "SDN.Audit"),
    "User": ("Group.Allocate", "Realm.AllocateUser", "User.Modify"),
    "Pool": ("Pool.Allocate",),
    "Mapping": ("Mapping.Modify",),
}  # fmt: skip
_USER = {
    "VM": (
        "VM.Backup", "VM.Config.CDROM", "VM.Config.Cloudinit", "VM.Console", "VM.GuestAgent.FileRead",
        "VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.FileWrite", "VM.PowerMgmt",
    ),
    "Datastore": ("Datastore.AllocateSpace",),
    "SDN": ("SDN.Use",),
    "Pool": ("Pool.Audit",),
    "Mapping": ("Mapping.Use",),
}  # fmt: skip
_AUDIT = {
    "VM": ("VM.Audit", "VM.GuestAgent.Audit"),
    "Sys": ("Sys.Audit",),
    "Datastore": ("Datastore.Audit",),
    "SDN": ("SDN.Audit",),
    "Pool": ("Pool.Audit",),
    "Mapping": ("Mapping.Audit",),
}
_ROOT_ONLY = (
    "Permissions.Modify", "Realm.Allocate", "Sys.AccessNetwork", "Sys.Incoming", "Sys.Modify", "Sys.PowerMgmt",
)  # fmt: skip


def _all(groups: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {privilege for names in groups.values() for privilege in names}


PRIVILEGES = frozenset(_all(_ADMIN) | _all(_USER) | _all(_AUDIT) | {*_ROOT_ONLY})
"""Every privilege there is."""


def _special_roles() -> dict[str, frozenset[str]]:
    roles = {
        NO_ACCESS: frozenset[str](),
        ADMINISTRATOR: PRIVILEGES,
        "PVEAdmin": frozenset((_all(_ADMIN) | _all(_USER) | _all(_AUDIT)) - {"Mapping.Modify"}),
        "PVEAuditor": frozenset(_all(_AUDIT)),
        "PVETemplateUser": frozenset({"VM.Clone", "VM.Audit"}),
    }
    for kind, admin in _ADMIN.items():
        user, audit = _USER.get(kind, ()), _AUDIT.get(kind, ())
        roles[f"PVE{kind}Admin"] = frozenset((*admin, *user, *audit))
        if user:
            roles[f"PVE{kind}User"] = frozenset((*user, *audit))
    return roles


SPECIAL_ROLES = _special_roles()
"""Proxmox's own roles, which nobody changes."""

_NAME = r"[A-Za-z0-9\.\-_]+"
_ACL_PATHS = (
    "/", "/access", "/access/groups", f"/access/groups/{_NAME}", "/access/realm", f"/access/realm/{_NAME}",
    "/nodes", f"/nodes/{_NAME}", "/pool", f"/pool/{_NAME}(/{_NAME}){{0,2}}", "/sdn",
    f"/sdn/(controllers|dns|fabrics|ipams|prefix-lists|route-maps)(/{_NAME})?",
    f"/sdn/zones(/{_NAME}(/{_NAME}(/[1-9][0-9]{{0,3}})?)?)?", "/storage", f"/storage/{_NAME}",
    "/vms", "/vms/[1-9][0-9]{2,}", f"/mapping(/{_NAME}){{0,2}}",
)  # fmt: skip
_ACL_PATH = re.compile("|".join(f"({path})" for path in _ACL_PATHS))


def normalise_path(path: str) -> str | None:
    """`path` as the list holds it; None if it has characters that no path may have, or is empty."""
    if not path:
        return None
    bare = re.sub("/+", "/", f"/{path}")
    bare = bare.removesuffix("/") or "/"
    return bare if re.fullmatch(r"[A-Za-z0-9.\-_/]+", bare) else None


def is_acl_path(path: str) -> bool:
    """Whether rights can be given on a path."""
    return _ACL_PATH.fullmatch(path) is not None


@dataclass
class Token:
    """An API token; its secret is kept elsewhere."""

    privsep: int = 1
    expire: int | None = None
    comment: str | None = None

    def info(self) -> dict[str, Any]:
        """As the API shows it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class User:
    """A user. `details`: firstname, lastname, email, comment, keys."""

    enable: int = 1
    expire: int = 0
    details: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)


@dataclass
class Group:
    comment: str | None = None
    users: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Pools:
    """What is in the pools: names to VMIDs and to storages."""

    guests: Mapping[str, Iterable[int]] = field(default_factory=dict)
    storages: Mapping[str, Iterable[str]] = field(default_factory=dict)

    def of(self, path: str) -> Iterator[str]:
        """The pools that what the path names is a member of."""
        kind, _, name = path.lstrip("/").partition("/")
        if kind == "vms" and name.isdigit():
            yield from (pool for pool, members in self.guests.items() if int(name) in members)
        elif kind == "storage":
            yield from (pool for pool, members in self.storages.items() if name in members)

    def paths(self) -> Iterator[str]:
        """The paths of all members."""
        for members in self.guests.values():
            yield from (f"/vms/{vmid}" for vmid in members)
        for storages in self.storages.values():
            yield from (f"/storage/{name}" for name in storages)


Entries = dict[tuple[str, str], dict[str, int]]
"""(kind, id) -> role -> propagate. Kinds: user, group, token."""


@dataclass
class UserConfig:
    """Who there is and who may do what; ``/etc/pve/user.cfg`` of a Proxmox node."""

    users: dict[str, User] = field(default_factory=lambda: {ROOT: User()})
    groups: dict[str, Group] = field(default_factory=dict)
    own_roles: dict[str, set[str]] = field(default_factory=dict)
    acl: dict[str, Entries] = field(default_factory=dict)

    @property
    def roles(self) -> dict[str, set[str]]:
        """Every role, with Proxmox's own."""
        return {**self.own_roles, **{name: set(privileges) for name, privileges in SPECIAL_ROLES.items()}}

    def token(self, tokenid: str) -> Token | None:
        """The token of a full id, ``user@realm!name``."""
        owner, _, name = tokenid.partition("!")
        user = self.users.get(owner)
        return user.tokens.get(name) if user is not None else None

    def give(self, path: str, kind: str, holder: str, role: str, *, propagate: bool = True) -> None:
        """Add an entry to the access control list, or change whether it propagates."""
        self.acl.setdefault(path, {}).setdefault((kind, holder), {})[role] = int(propagate)

    def take(self, path: str, kind: str, holder: str, role: str) -> None:
        """Remove an entry; nothing happens if there is none."""
        entries = self.acl.get(path, {})
        roles = entries.get((kind, holder), {})
        roles.pop(role, None)
        if not roles:
            entries.pop((kind, holder), None)
        if not entries:
            self.acl.pop(path, None)

    def forget(self, kind: str, holder: str) -> None:
        """Remove all entries of a user, group or token."""
        for path in list(self.acl):
            for role in list(self.acl.get(path, {}).get((kind, holder), {})):
                self.take(path, kind, holder, role)

    def roles_on(self, holder: str, path: str) -> dict[str, int]:
        """The roles of a user or token on a path, without those from pools: role -> propagate.

        What is given on a deeper path replaces what comes from above; on one path what a token has comes before
        what the user has, and that before what the groups have. NoAccess takes all others away.
        """
        token = self.token(holder)
        if "!" in holder:
            if token is None:
                return {}
            if not token.privsep:
                return self.roles_on(holder.partition("!")[0], path)
        roles: dict[str, int] = {}
        for step in _steps(path):
            roles = self._given_at(holder, step, final=step == path) or roles
        return {NO_ACCESS: roles[NO_ACCESS]} if NO_ACCESS in roles else roles

    def _given_at(self, holder: str, path: str, *, final: bool) -> dict[str, int]:
        entries = self.acl.get(path, {})
        groups = [name for name, group in self.groups.items() if holder in group.users]
        for holders in ([("token", holder)], [("user", holder)], [("group", name) for name in groups]):
            given = {
                role: propagate
                for key in holders
                for role, propagate in entries.get(key, {}).items()
                if final or propagate
            }
            if given:
                return given
        return {}

    def privileges(self, holder: str, path: str, pools: Pools) -> dict[str, int]:
        """The privileges of a user or token on a path, with those from pools: privilege -> propagate."""
        owner, separator, _ = holder.partition("!")
        if holder == ROOT:
            return dict.fromkeys(PRIVILEGES, 1)
        if separator:
            token = self.token(holder)
            if token is None:
                return {}
            if not token.privsep:
                return self.privileges(owner, path, pools)
        held = self._privileges_of(self._with_pools(holder, path, pools))
        if separator and owner != ROOT:
            of_owner = self.privileges(owner, path, pools)
            held = {name: flag and of_owner[name] for name, flag in held.items() if name in of_owner}
        return held

    def _with_pools(self, holder: str, path: str, pools: Pools) -> dict[str, int]:
        roles = self.roles_on(holder, path)
        from_pools = {role for pool in pools.of(path) for role in self.roles_on(holder, f"/pool/{pool}")}
        if NO_ACCESS in roles or not from_pools:
            return roles
        if NO_ACCESS in from_pools:
            return {NO_ACCESS: 0}
        return {**dict.fromkeys(from_pools, 0), **roles}

    def _privileges_of(self, roles: Mapping[str, int]) -> dict[str, int]:
        known, held = self.roles, dict[str, int]()
        for role, propagate in roles.items():
            for privilege in known.get(role, ()):
                held[privilege] = held.get(privilege, 0) or propagate
        return held

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes it of again."""
        return {
            "users": {name: asdict(user) for name, user in self.users.items()},
            "groups": {
                name: {"comment": group.comment, "users": sorted(group.users)}
                for name, group in self.groups.items()
            },
            "roles": {name: sorted(privileges) for name, privileges in self.own_roles.items()},
            "acl": [
                [path, kind, holder, role, propagate]
                for path, entries in self.acl.items()
                for (kind, holder), roles in entries.items()
                for role, propagate in roles.items()
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> UserConfig:
        """The config that `to_json` wrote."""
        config = cls()
        for name, user in values["users"].items():
            tokens = {tokenid: Token(**token) for tokenid, token in user.pop("tokens").items()}
            config.users[name] = User(**user, tokens=tokens)
        for name, group in values["groups"].items():
            config.groups[name] = Group(group["comment"], set(group["users"]))
        config.own_roles = {name: set(privileges) for name, privileges in values["roles"].items()}
        for path, kind, holder, role, propagate in values["acl"]:
            config.give(path, kind, holder, role, propagate=bool(propagate))
        return config


def _steps(path: str) -> list[str]:
    """The path's parents from the root down, and itself."""
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))]
