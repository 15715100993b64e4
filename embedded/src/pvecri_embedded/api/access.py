# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who asks, and whether they may (PVE::HTTPServer, PVE::RPCEnvironment)."""

from __future__ import annotations

import hmac
import json
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web
from fakepve import PveError
from fakepve.routing import split_list
from fakepve.server import FORMATS, USER, params

from pvecri_embedded import datacenter
from pvecri_embedded.api.base import Base
from pvecri_embedded.layout import write_atomically
from pvecri_embedded.usercfg import ROOT, Pools, UserConfig, normalise_path

# PVE::RPCEnvironment::compute_api_permission: the rights in a ticket's answer, by the first part of the path.
_CAPABILITIES = {
    "vms": re.compile(r"VM\.|Permissions\.Modify"),
    "access": re.compile(r"(User|Group)\.|Permissions\.Modify"),
    "storage": re.compile(r"Datastore\.|Permissions\.Modify"),
    "nodes": re.compile(r"Sys\.|Permissions\.Modify"),
    "sdn": re.compile(r"SDN\.|Permissions\.Modify"),
    "dc": re.compile(r"Sys\.Audit|Sys\.Modify|SDN\."),
    "mapping": re.compile(r"Mapping\.|Permissions\.Modify"),
}
_CAPABILITY_PATHS = ("/", "/nodes", "/access/groups", "/vms", "/storage", "/sdn", "/mapping")
_PERMISSION_PATHS = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")
_MODIFIABLE_WITH = {"storage": "Datastore.Allocate", "vms": "VM.Allocate", "pool": "Pool.Allocate"}


class Denied(Exception):
    """A permission check that failed; empty if Proxmox gives no reason."""


class AccessApi(Base):
    """Overrides fakepve's rights, which know no roles, no separated tokens and no overruling of paths."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.acl: dict[str, Any] = {}  # fakepve allows everything to everybody without one
        self.access = UserConfig()

    # -- what is kept -----------------------------------------------------------------------------------------

    def save_access(self) -> None:
        """Write down who there is and may do what, and apart from it the secrets."""
        write_atomically(self.layout.user_cfg, json.dumps(self.access.to_json(), indent=1), 0o640)
        secrets = {"passwords": self.users, "tokens": self.apitokens}
        write_atomically(self.layout.access_secrets, json.dumps(secrets), 0o600)

    def load_access(self) -> None:
        """Read what `save_access` has written, if it has."""
        if self.layout.user_cfg.exists():
            self.access = UserConfig.from_json(json.loads(self.layout.user_cfg.read_text()))
            secrets = json.loads(self.layout.access_secrets.read_text())
            self.users, self.apitokens = secrets["passwords"], secrets["tokens"]

    def forget_guest(self, vmid: int) -> None:
        """Nobody has rights on this guest any more, by a pool or by its own path (remove_vm_access)."""
        self._pool_leave(vmid)
        if self.access.acl.pop(f"/vms/{vmid}", None) is not None:
            self.save_access()

    async def _pool_create(self, v: dict[str, Any], user: str) -> None:
        await super()._pool_create(v, user)
        self._sync_pools()

    async def _pool_delete(self, v: dict[str, Any], user: str) -> None:
        await super()._pool_delete(v, user)
        path = f"/pool/{v['poolid']}"
        self.access.acl = {
            key: entries for key, entries in self.access.acl.items() if not f"{key}/".startswith(f"{path}/")
        }
        self.save_access()

    # -- rights -----------------------------------------------------------------------------------------------

    def privileges(self, user: str, path: str) -> dict[str, int]:
        """What a user or token may do on a path: privilege -> whether it propagates."""
        return self.access.privileges(user, path, self._pool_members())

    def _pool_members(self) -> Pools:
        storages = {name: meta["storage"] for name, meta in self.pool_info.items() if name in self.pools}
        return Pools(self.pools, storages)

    def allowed(self, user: str, path: str, priv: str) -> bool:
        """True if the user or token holds the privilege on the path."""
        return priv in self.privileges(user, path)

    def _any_allowed(self, user: str, path: str, names: Sequence[str]) -> bool:
        held = self.privileges(user, path)
        return any(name in held for name in names)

    def datacenter(self) -> dict[str, Any]:
        """The cluster's options."""
        path = self.layout.datacenter
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return kept

    def allowed_tags(self, user: str) -> set[str]:
        """The tags that an account may set, besides any others if none are restricted."""
        seen = (ct for ct in self.cts if self.allowed(user, f"/vms/{ct.vmid}", "VM.Audit"))
        visible = {tag for ct in seen for tag in datacenter.split(ct.config.get("tags", ""))}
        administrator = self.allowed(user, "/", "Sys.Modify")
        return datacenter.allowed_tags(self.datacenter(), administrator=administrator, visible=visible)

    def check_tags(self, user: str, old: str, new: str) -> None:
        """Raise Proxmox's 403 for a tag that the account may not add or remove."""
        if self.allowed(user, "/", "Sys.Modify"):
            return
        if tag := datacenter.refused_tag(self.datacenter(), self.allowed_tags(user), old, new):
            raise PveError(403, f"Permission check failed (/, Sys.Modify for modifying tag '{tag}')")

    async def answer(
        self, request: web.Request, match: Any, params: Mapping[str, Any], user: str | None, call: Any = None
    ) -> Any:
        # Proxmox checks rights before it checks parameters.
        info = match.methods.get(request.method) if match is not None else None
        if info is not None:
            self.check_permissions(user, info.get("permissions"), {**params, **match.params})
        return await super().answer(request, match, params, user, call)

    def check_permissions(
        self, user: str | None, perms: Mapping[str, Any] | None, values: Any, declared: Any = None
    ) -> None:
        """Raise Proxmox's 403 unless `user` satisfies a method's rule (check_api2_permissions)."""
        rule = perms or {}
        if user == ROOT or rule.get("user") == "world":
            return
        try:
            if user is None:
                raise Denied("user != null")
            if perms is None:
                raise Denied(f"user != {ROOT}")
            if rule.get("user") != "all":
                if "check" not in rule:
                    raise Denied
                self._check_permission_rule(user, rule["check"], values)
        except Denied as denial:
            why = f" ({denial})" if str(denial) else ""
            raise PveError(403, f"Permission check failed{why}") from None

    def _check_permission_rule(self, user: str, rule: Sequence[Any], values: Mapping[str, Any]) -> None:
        """One rule of a method. Raises Denied."""
        kind, *rest = rule
        if kind == "and":
            for part in rest:
                self._check_permission_rule(user, part, values)
        elif kind == "or":
            if not any(self._satisfies(user, part, values) for part in rest):
                raise Denied
        elif kind == "perm":
            self._check_perm(user, rest, values)
        elif kind == "userid-param":
            self._check_userid(user, rest[0], str(values.get("userid", "")))
        elif kind == "userid-group":
            self._check_userid_group(user, rest[0], dict(zip(rest[1::2], rest[2::2], strict=False)), values)
        elif kind == "perm-modify":
            path = normalise_path(str(values.get("path", "")))
            if path is not None:  # else the method itself refuses it
                self.check_perm_modify(user, path)
        else:
            raise Denied(f"user != {ROOT}")

    def _satisfies(self, user: str, rule: Sequence[Any], values: Mapping[str, Any]) -> bool:
        try:
            self._check_permission_rule(user, rule, values)
        except (Denied, PveError):
            return False
        return True

    def _check_perm(self, user: str, rest: Sequence[Any], values: Mapping[str, Any]) -> None:
        template, names, *pairs = rest
        options = dict(zip(pairs[::2], pairs[1::2], strict=False))
        if options.get("require_param") and values.get(options["require_param"]) is None:
            raise Denied
        path = normalise_path(re.sub(r"\{([^}]+)\}", lambda found: str(values.get(found[1]) or ""), template))
        held = self.privileges(user, path) if path is not None else {}
        if options.get("any"):
            if not any(name in held for name in names):
                raise Denied(f"{path or ''}, {'|'.join(names)}")
            return
        for name in names:
            if name not in held:
                raise Denied(f"{path or ''}, {name}")

    def _check_userid(self, user: str, test: str, userid: str) -> None:
        if test == "self":
            self.user_of(userid)
            if user != userid:
                raise Denied
            return
        path = f"/access/realm/{userid.rpartition('@')[2]}"
        if not self.allowed(user, path, test):
            raise Denied(f"{path}, {test}")

    def _check_userid_group(
        self, user: str, names: Sequence[str], options: Mapping[str, str], values: Mapping[str, Any]
    ) -> None:
        """Whether the user may do this to a user of ``values``, by all groups or by one that they are in."""
        userid, mode = str(values.get("userid", "")), options.get("groups_param")
        if mode != "create":
            self.user_of(userid)
        if self._any_allowed(user, "/access/groups", names):
            return
        groups = {name for name in self.access.groups if self._any_allowed(user, f"/access/groups/{name}", names)}
        if mode:
            asked = split_list(values.get("groups"))
            if not asked:
                raise Denied(f"/access/groups, {'|'.join(names)}")
            for name in asked:
                if name not in groups:
                    raise Denied(f"/access/groups/{name}, {'|'.join(names)}")
        if mode != "create" and not any(userid in self.access.groups[name].users for name in groups):
            raise Denied

    def check_perm_modify(self, user: str, path: str) -> None:
        """Raise Denied unless the user may change rights on the path."""
        names = ["Permissions.Modify"]
        kind, _, rest = path.lstrip("/").partition("/")
        if rest and kind in _MODIFIABLE_WITH:
            names.append(_MODIFIABLE_WITH[kind])
        if not self._any_allowed(user, path, names):
            raise Denied(f"{path}, {'|'.join(names)}")

    def user_of(self, userid: str) -> Any:
        """The user of this id, or Proxmox's 500."""
        if userid not in self.access.users:
            raise PveError(500, f"no such user ('{userid}')")
        return self.access.users[userid]

    def check_request(self, request: web.Request) -> None:
        """The check of rights for a route that fakepve answers without one."""
        match = self.resolve(request, FORMATS[0])
        self.check_permissions(request[USER], match.methods[request.method].get("permissions"), match.params)

    # -- GET /access/permissions ------------------------------------------------------------------------------

    def _routes_access(self) -> list[tuple[str, str, Any]]:
        return [("GET", "/access/permissions", self._permissions)]

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        """What the caller (or ``userid``) may do: on one path, or on all that are named anywhere."""
        who = v.get("userid") or user
        if who != user and who.partition("!")[0] != user:
            self.require(user, "/access", "Sys.Audit")
        if v.get("path"):
            return {v["path"]: self.privileges(who, v["path"])}
        paths = {*_PERMISSION_PATHS, *self._acl_paths(), *self._pool_members().paths()}
        held = {path: self.privileges(who, path) for path in sorted(paths)}
        return {path: privileges for path, privileges in held.items() if privileges}

    def _acl_paths(self) -> Iterator[str]:
        """The paths of the access control list, and their parents."""
        yield "/"
        for path in self.access.acl:
            parts = path.strip("/").split("/")
            yield from ("/" + "/".join(parts[: n + 1]) for n in range(len(parts)) if parts[0])

    # -- logging in -------------------------------------------------------------------------------------------

    async def _ticket(self, request: web.Request) -> web.Response:
        """POST /access/ticket: log in with a password."""
        values = self._verify(request, await params(request))
        user = str(values["username"])
        if "@" not in user:
            user = f"{user}@{values.get('realm', 'pam')}"
        if not self.enabled(user) or not self.check_password(user, values["password"]):
            raise PveError(401, "authentication failure")
        ticket, csrf = self.issue_ticket(user)
        data = {
            "ticket": ticket,
            "CSRFPreventionToken": csrf,
            "username": user,
            "cap": self._capabilities(user),
        }
        return web.json_response({"data": data})

    async def _password(self, request: web.Request) -> web.Response:
        response: web.Response = await super()._password(request)
        self.save_access()
        return response

    def _capabilities(self, user: str) -> dict[str, dict[str, int]]:
        cap: dict[str, dict[str, int]] = {name: {} for name in _CAPABILITIES}
        for path in dict.fromkeys((*_CAPABILITY_PATHS, *self._acl_paths())):
            top = path.split("/")[1] or "dc"
            names = ("vms", "storage") if top == "pool" else (top,) if top in cap else ()
            for privilege in self.privileges(user, path):
                for name in names:
                    if _CAPABILITIES[name].match(privilege):
                        cap[name][privilege] = 1
        return cap

    def enabled(self, userid: str) -> bool:
        """Whether there is such a user, who may log in now."""
        user = self.access.users.get(userid)
        return user is not None and bool(user.enable) and not 0 < user.expire < time.time()

    def _authenticate(self, request: web.Request) -> str | None:
        if request.path in {f"{prefix}/access/ticket" for prefix in FORMATS}:
            return None
        scheme, _, credentials = request.headers.get("Authorization", "").partition("=")
        if scheme == "PVEAPIToken":
            tokenid, _, secret = credentials.rpartition("=")
            if not self._knows_token(tokenid, secret):
                raise PveError(401, "Authentication failed!")
            return tokenid
        return self._session_user(request)

    def _knows_token(self, tokenid: str, secret: str) -> bool:
        token, expected = self.access.token(tokenid), self.apitokens.get(tokenid)
        if token is None or expected is None or not self.enabled(tokenid.partition("!")[0]):
            return False
        expired = token.expire is not None and 0 < token.expire < time.time()
        return not expired and hmac.compare_digest(expected.encode(), secret.encode())

    def _session_user(self, request: web.Request) -> str:
        cookie = request.cookies.get("PVEAuthCookie")
        if not cookie:
            raise PveError(401, "No ticket")
        session = self.tickets.get(urllib.parse.unquote(cookie))
        if session is None or session["expires"] < time.time() or not self.enabled(session["user"]):
            raise PveError(401, "Authentication failed!")
        if request.method not in {"GET", "HEAD"} and request.headers.get("CSRFPreventionToken") != session["csrf"]:
            raise PveError(401, "Permission denied - invalid csrf token")
        return str(session["user"])
