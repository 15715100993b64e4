# SPDX-License-Identifier: AGPL-3.0-or-later
"""Users, tokens and permissions, by Proxmox's rules (PVE::AccessControl, PVE::RPCEnvironment)."""

from __future__ import annotations

import hmac
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web
from fakepve import PveError, shapes
from fakepve.server import FORMATS, params

from .base import Base

# PVE::RPCEnvironment::compute_api_permission: which privileges a login is told of, and where they are held.
_CAPABILITIES = {
    "vms": ("/vms", "VM."),
    "storage": ("/storage", "Datastore."),
    "sdn": ("/sdn", "SDN."),
    "mapping": ("/mapping", "Mapping."),
    "nodes": ("/nodes", "Sys."),
}
_DATACENTER = ("SDN.Allocate", "SDN.Audit", "SDN.Use", "Sys.Audit", "Sys.Modify")
_ACCESS = ("Group.Allocate", "Permissions.Modify", "User.Modify")
_PERMISSION_PATHS = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")

# What the runtime's user may do: see docs/embedded-node.md.
RUNTIME_PRIVILEGES = (
    "Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit",
    "Pool.Allocate", "Pool.Audit",
    "SDN.Use", "Sys.AccessNetwork", "Sys.Audit", "Sys.Modify",
    "VM.Allocate", "VM.Audit", "VM.Config.CPU", "VM.Config.Disk", "VM.Config.Memory",
    "VM.Config.Network", "VM.Config.Options", "VM.PowerMgmt",
)  # fmt: skip


class AccessApi(Base):
    """Overrides fakepve's rights, which know no separated tokens and no overruling of a path by a deeper one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.acl: dict[str, list[tuple[str, set[str]]]] = {}
        self.separated_tokens: set[str] = set()

    def add_token(self, tokenid: str, secret: str, *, separated: bool) -> None:
        """An API token. A separated one (privsep=1) has the rights given to it, of those its user has."""
        self.apitokens[tokenid] = secret
        if separated:
            self.separated_tokens.add(tokenid)

    def allowed(self, user: str, path: str, priv: str) -> bool:
        """True if the user or token holds the privilege on the path."""
        owner = user.partition("!")[0]
        if user in self.separated_tokens and not self._granted(user, path, priv):
            return False
        return owner == "root@pam" or self._granted(owner, path, priv)

    def _granted(self, user: str, path: str, priv: str) -> bool:
        entries = dict(self.acl.get(user, []))
        return any(priv in _effective(entries, candidate) for candidate in self._also(path))

    def _also(self, path: str) -> Iterator[str]:
        """The path, and the pools it is in: their rights hold on it too."""
        yield path
        kind, _, name = path.lstrip("/").partition("/")
        if kind == "vms" and name.isdigit():
            yield from (f"/pool/{pool}" for pool, members in self.pools.items() if int(name) in members)
        elif kind == "storage":
            yield from (f"/pool/{pool}" for pool, meta in self.pool_info.items() if name in meta["storage"])

    def check_permissions(
        self, user: str | None, perms: Mapping[str, Any] | None, values: Any, declared: Any = None
    ) -> None:
        if user in self.separated_tokens and perms and "check" in perms:
            # fakepve lets every token of root's through here.
            allowed, why = self._check(user, perms["check"], values, declared)
            if not allowed:
                raise PveError(403, f"Permission check failed ({why})" if why else "Permission check failed")
            return
        super().check_permissions(user, perms, values, declared)

    def _routes_access(self) -> list[tuple[str, str, Any]]:
        return [("GET", "/access/permissions", self._permissions)]

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        """GET /access/permissions: what the caller (or ``userid``) holds on the paths Proxmox names by default."""
        who = v.get("userid") or user
        paths = [v["path"]] if v.get("path") else [*_PERMISSION_PATHS, *self._granted_paths(who)]
        held = {path: self._privileges(who, path) for path in paths}
        return {path: dict.fromkeys(privileges, 1) for path, privileges in held.items() if privileges}

    def _granted_paths(self, user: str) -> list[str]:
        return [path for holder in (user, user.partition("!")[0]) for path, _ in self.acl.get(holder, [])]

    def _privileges(self, user: str, path: str) -> list[str]:
        return [priv for priv in sorted(shapes.PRIVILEGES) if self.allowed(user, path, priv)]

    async def _ticket(self, request: web.Request) -> web.Response:
        """POST /access/ticket: log in with a password."""
        values = self._verify(request, await params(request))
        user = str(values["username"])
        if "@" not in user:
            user = f"{user}@{values.get('realm', 'pam')}"
        if not self.check_password(user, values["password"]):
            raise PveError(401, "authentication failure")
        ticket, csrf = self.issue_ticket(user)
        data = {
            "ticket": ticket,
            "CSRFPreventionToken": csrf,
            "username": user,
            "cap": self._capabilities(user),
        }
        return web.json_response({"data": data})

    def _capabilities(self, user: str) -> dict[str, dict[str, int]]:
        cap = {
            name: [priv for priv in self._privileges(user, path) if priv.startswith((prefix, "Permissions."))]
            for name, (path, prefix) in _CAPABILITIES.items()
        }
        cap["dc"] = [priv for priv in self._privileges(user, "/") if priv in _DATACENTER]
        cap["access"] = [priv for priv in self._privileges(user, "/access") if priv in _ACCESS]
        return {name: dict.fromkeys(privileges, 1) for name, privileges in cap.items()}

    def _authenticate(self, request: web.Request) -> str | None:
        if request.path in {f"{prefix}/access/ticket" for prefix in FORMATS}:
            return None
        scheme, _, credentials = request.headers.get("Authorization", "").partition("=")
        if scheme == "PVEAPIToken":
            tokenid, _, secret = credentials.rpartition("=")
            expected = self.apitokens.get(tokenid)
            if expected is None or not hmac.compare_digest(expected.encode(), secret.encode()):
                raise PveError(401, "Authentication failed!")
            return tokenid
        return self._session_user(request)

    def _session_user(self, request: web.Request) -> str:
        cookie = request.cookies.get("PVEAuthCookie")
        if not cookie:
            raise PveError(401, "No ticket")
        session = self.tickets.get(urllib.parse.unquote(cookie))
        if session is None or session["expires"] < time.time():
            raise PveError(401, "permission denied - invalid PVE ticket")
        if request.method not in {"GET", "HEAD"} and request.headers.get("CSRFPreventionToken") != session["csrf"]:
            raise PveError(401, "Permission denied - invalid csrf token")
        return str(session["user"])


def _effective(entries: Mapping[str, set[str]], path: str) -> set[str]:
    """The privileges on a path: those given on it or on its nearest parent that has an entry."""
    while path not in entries and path != "/":
        path = path.rpartition("/")[0] or "/"
    return entries.get(path, set())
