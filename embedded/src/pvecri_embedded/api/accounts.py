# SPDX-License-Identifier: AGPL-3.0-or-later
"""/access/users, /access/groups, /access/roles and /access/acl: what pveum changes, kept over restarts."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from fakepve import PveError
from fakepve.routing import split_list

from pvecri_embedded.api.access import AccessApi, Denied
from pvecri_embedded.api.base import parameter_error
from pvecri_embedded.usercfg import (
    NO_ACCESS,
    PRIVILEGES,
    SPECIAL_ROLES,
    Group,
    Token,
    User,
    is_acl_path,
    normalise_path,
)

_DETAILS = ("firstname", "lastname", "email", "comment", "keys")
_KINDS = {"users": "user", "groups": "group", "tokens": "token"}


class AccountsApi(AccessApi):
    """Overrides fakepve's schema-only answers for accounts."""

    def _routes_accounts(self) -> list[tuple[str, str, Any]]:
        user, token = "/access/users/{userid}", "/access/users/{userid}/token/{tokenid}"
        group, role = "/access/groups/{groupid}", "/access/roles/{roleid}"
        return [
            ("GET", "/access/users", self._user_list), ("POST", "/access/users", self._user_create),
            ("GET", user, self._user_read), ("PUT", user, self._user_update), ("DELETE", user, self._user_delete),
            ("GET", f"{user}/token", self._token_list), ("GET", token, self._token_read),
            ("POST", token, self._token_create), ("PUT", token, self._token_update),
            ("DELETE", token, self._token_delete),
            ("GET", "/access/groups", self._group_list), ("POST", "/access/groups", self._group_create),
            ("GET", group, self._group_read), ("PUT", group, self._group_update),
            ("DELETE", group, self._group_delete),
            ("GET", "/access/roles", self._role_list), ("POST", "/access/roles", self._role_create),
            ("GET", role, self._role_read), ("PUT", role, self._role_update), ("DELETE", role, self._role_delete),
            ("GET", "/access/acl", self._acl_list), ("PUT", "/access/acl", self._acl_update),
        ]  # fmt: skip

    @contextlib.contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """A change of the user config: kept if it succeeds, and an error says what failed."""
        try:
            yield
        except PveError as error:
            text = f"400 {error.message}" if error.status == 400 else error.message
            raise PveError(500, f"{what} failed: {text}") from error
        self.save_access()

    # -- users ------------------------------------------------------------------------------------------------

    async def _user_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        wanted, every = v.get("enabled"), self._any_allowed(user, "/access/groups", ("User.Modify", "Sys.Audit"))
        seen = {
            member
            for name, group in self.access.groups.items()
            if self._any_allowed(user, f"/access/groups/{name}", ("User.Modify", "Sys.Audit"))
            for member in group.users
        }
        items = []
        for userid in sorted(self.access.users):
            each = self.access.users[userid]
            if not (every or userid == user or userid in seen) or (wanted is not None and wanted != each.enable):
                continue
            item = {"userid": userid, "realm-type": userid.rpartition("@")[2], **_shown(each)}
            if v.get("full"):
                item["groups"] = ",".join(self._groups_of(userid))
                item["tokens"] = [{"tokenid": name, **each.tokens[name].info()} for name in sorted(each.tokens)]
            items.append(item)
        return items

    async def _user_create(self, v: dict[str, Any], user: str) -> None:
        userid = v["userid"]
        with self._changing("create user"):
            if userid in self.access.users:
                raise PveError(500, f"user '{userid}' already exists")
            groups = self._known_groups(v.get("groups"))
            if v.get("password") is not None:
                self._set_password(userid, v["password"])
            made = User(int(v.get("enable", 1)), int(v.get("expire", 0)))
            made.details = {name: v[name] for name in _DETAILS if v.get(name)}
            self.access.users[userid] = made
            for name in groups:
                self.access.groups[name].users.add(userid)

    def _set_password(self, userid: str, password: str) -> None:
        name, _, realm = userid.rpartition("@")
        if realm == "pam":
            raise PveError(500, f"change password failed: user '{name}' does not exist")
        if realm != "pve":
            raise PveError(500, f"auth domain '{realm}' does not exist")
        self.users[userid] = password

    async def _user_read(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        each = self.user_of(v["userid"])
        tokens = {name: token.info() for name, token in each.tokens.items()}
        return {**_shown(each), "groups": self._groups_of(v["userid"]), "tokens": tokens}

    async def _user_update(self, v: dict[str, Any], user: str) -> None:
        with self._changing("update user"):
            each = self.user_of(v["userid"])
            groups = self._known_groups(v.get("groups"))
            each.enable = int(v.get("enable", each.enable))
            each.expire = int(v.get("expire", each.expire))
            each.details |= {name: v[name] for name in _DETAILS if v.get(name) is not None}
            if v.get("groups") is not None and not v.get("append"):
                self._leave_groups(v["userid"])
            for name in groups:
                self.access.groups[name].users.add(v["userid"])

    async def _user_delete(self, v: dict[str, Any], user: str) -> None:
        userid = v["userid"]
        with self._changing("delete user"):
            each = self.user_of(userid)
            for name in each.tokens:
                self.apitokens.pop(f"{userid}!{name}", None)
                self.access.forget("token", f"{userid}!{name}")
            del self.access.users[userid]
            self.users.pop(userid, None)
            self._leave_groups(userid)
            self.access.forget("user", userid)

    def _groups_of(self, userid: str) -> list[str]:
        return sorted(name for name, group in self.access.groups.items() if userid in group.users)

    def _leave_groups(self, userid: str) -> None:
        for group in self.access.groups.values():
            group.users.discard(userid)

    def _known_groups(self, text: str | None) -> list[str]:
        names: list[str] = split_list(text)
        for name in names:
            if name not in self.access.groups:
                raise PveError(500, f"no such group '{name}'")
        return names

    # -- tokens -----------------------------------------------------------------------------------------------

    def _token_of(self, v: Mapping[str, Any]) -> Token:
        token: Token | None = self.user_of(v["userid"]).tokens.get(v["tokenid"])
        if token is None:
            raise PveError(500, f"no such token '{v['tokenid']}' for user '{v['userid']}'")
        return token

    def _new_secret(self, tokenid: str) -> dict[str, str]:
        """A new secret for a token, which is shown in this answer and never again."""
        self.apitokens[tokenid] = str(uuid.uuid4())
        return {"value": self.apitokens[tokenid], "full-tokenid": tokenid}

    async def _token_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        return [{"tokenid": name, **token.info()} for name, token in self.user_of(v["userid"]).tokens.items()]

    async def _token_read(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        return self._token_of(v).info()

    async def _token_create(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        tokens = self.user_of(v["userid"]).tokens
        if v["tokenid"] in tokens:
            raise parameter_error("tokenid", "Token already exists.")
        with self._changing("generating token"):
            token = Token(int(v.get("privsep", 1)), v.get("expire"), v.get("comment") or None)
            tokens[v["tokenid"]] = token
            secret = self._new_secret(f"{v['userid']}!{v['tokenid']}")
        return {"info": token.info(), **secret}

    async def _token_update(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        token = self._token_of(v)
        with self._changing("updating token info"):
            deleted = split_list(v.get("delete"))
            for name in deleted:
                if name != "comment":
                    raise parameter_error("delete", f"unknown option '{name}'")
            token.privsep = int(v.get("privsep", token.privsep))
            token.expire = v.get("expire", token.expire)
            token.comment = None if deleted else v.get("comment", token.comment) or None
            secret = self._new_secret(f"{v['userid']}!{v['tokenid']}") if v.get("regenerate") else {}
        return {**token.info(), **secret}

    async def _token_delete(self, v: dict[str, Any], user: str) -> None:
        self._token_of(v)
        with self._changing("deleting token"):
            del self.user_of(v["userid"]).tokens[v["tokenid"]]
            self.apitokens.pop(f"{v['userid']}!{v['tokenid']}", None)

    # -- groups -----------------------------------------------------------------------------------------------

    def _group_of(self, name: str) -> Group:
        if name not in self.access.groups:
            raise PveError(500, f"group '{name}' does not exist")
        return self.access.groups[name]

    async def _group_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        names = ("User.Modify", "Sys.Audit", "Group.Allocate")
        return [
            {"groupid": name, "users": ",".join(sorted(group.users)), **_comment(group)}
            for name, group in sorted(self.access.groups.items())
            if self._any_allowed(user, f"/access/groups/{name}", names)
        ]

    async def _group_create(self, v: dict[str, Any], user: str) -> None:
        with self._changing("create group"):
            if v["groupid"] in self.access.groups:
                raise PveError(500, f"group '{v['groupid']}' already exists")
            self.access.groups[v["groupid"]] = Group(v.get("comment") or None)

    async def _group_read(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        group = self._group_of(v["groupid"])
        return {"members": sorted(group.users), **_comment(group)}

    async def _group_update(self, v: dict[str, Any], user: str) -> None:
        with self._changing("update group"):
            group = self._group_of(v["groupid"])
            group.comment = v.get("comment", group.comment)

    async def _group_delete(self, v: dict[str, Any], user: str) -> None:
        with self._changing("delete group"):
            self._group_of(v["groupid"])
            del self.access.groups[v["groupid"]]
            self.access.forget("group", v["groupid"])

    # -- roles ------------------------------------------------------------------------------------------------

    def _role_of(self, name: str) -> set[str]:
        if name not in self.access.roles:
            raise PveError(500, f"role '{name}' does not exist")
        return self.access.roles[name]

    async def _role_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        return [
            {"roleid": name, "privs": ",".join(sorted(privileges)), "special": int(name in SPECIAL_ROLES)}
            for name, privileges in sorted(self.access.roles.items())
        ]

    async def _role_create(self, v: dict[str, Any], user: str) -> None:
        name = v["roleid"]
        if name.lower().startswith("pve"):
            text = "cannot use role ID starting with the (case-insensitive) 'PVE' namespace"
            raise parameter_error("roleid", text)
        with self._changing("create role"):
            if name in self.access.roles:
                raise PveError(500, f"role '{name}' already exists")
            self.access.own_roles[name] = _known_privileges(v.get("privs"))

    async def _role_read(self, v: dict[str, Any], user: str) -> dict[str, int]:
        return dict.fromkeys(sorted(self._role_of(v["roleid"])), 1)

    async def _role_update(self, v: dict[str, Any], user: str) -> None:
        name = v["roleid"]
        if name in SPECIAL_ROLES:
            raise PveError(500, f"auto-generated role '{name}' cannot be modified")
        with self._changing("update role"):
            kept = self._role_of(name) if v.get("append") else set()
            self.access.own_roles[name] = kept | _known_privileges(v.get("privs"))

    async def _role_delete(self, v: dict[str, Any], user: str) -> None:
        name = v["roleid"]
        if name in SPECIAL_ROLES:
            raise PveError(500, f"auto-generated role '{name}' cannot be deleted")
        with self._changing("delete role"):
            self._role_of(name)
            # Entries of the access control list stay, and give nothing.
            del self.access.own_roles[name]

    # -- access control list ----------------------------------------------------------------------------------

    async def _acl_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        audit = self.allowed(user, "/access", "Sys.Audit")
        return [
            {"path": path, "type": kind, "ugid": holder, "roleid": role, "propagate": propagate}
            for path, entries in sorted(self.access.acl.items())
            if audit or self._may_modify(user, path)
            for (kind, holder), roles in entries.items()
            for role, propagate in roles.items()
        ]

    def _may_modify(self, user: str, path: str) -> bool:
        try:
            self.check_perm_modify(user, path)
        except Denied:
            return False
        return True

    async def _acl_update(self, v: dict[str, Any], user: str) -> None:
        if not any(v.get(name) for name in _KINDS):
            text = "either 'users', 'groups' or 'tokens' is required."
            raise PveError(400, "Parameter verification failed.", dict.fromkeys(_KINDS, text))
        path, delete = normalise_path(v["path"]), bool(v.get("delete"))
        if path is None or not (delete or is_acl_path(path)):
            raise parameter_error("path", f"invalid ACL path '{v['path']}'")
        propagate = bool(v.get("propagate", 1))
        with self._changing("ACL update"):
            for role in split_list(v["roles"]):
                self._role_of(role)
                self._check_may_give(user, path, role, propagate=propagate, delete=delete)
            holders = [(kind, holder) for name, kind in _KINDS.items() for holder in split_list(v.get(name))]
            for kind, holder in holders:
                self._check_holder(kind, holder)
            for role in split_list(v["roles"]):
                for kind, holder in holders:
                    if delete:
                        self.access.take(path, kind, holder, role)
                    else:
                        self.access.give(path, kind, holder, role, propagate=propagate)

    def _check_may_give(self, user: str, path: str, role: str, *, propagate: bool, delete: bool) -> None:
        """Who may not change all rights on a path hands out only what they hold there."""
        held = self.privileges(user, path)
        if "Permissions.Modify" in held:
            return
        needed = self._role_of(role)
        withheld = needed - held.keys()
        if propagate and not delete:
            withheld |= {name for name in needed & held.keys() if not held[name]}
        if withheld or role == NO_ACCESS:
            verb = "remove" if delete else "add"
            raise parameter_error("role", f"Cannot {verb} role '{role}' - requires 'Permissions.Modify'")

    def _check_holder(self, kind: str, holder: str) -> None:
        if kind == "group":
            self._group_of(holder)
        elif kind == "user" and holder not in self.access.users:
            raise PveError(500, f"user '{holder}' does not exist")
        elif kind == "token":
            owner, _, name = holder.partition("!")
            self._token_of({"userid": owner, "tokenid": name})


def _shown(user: User) -> dict[str, Any]:
    return {"enable": user.enable, "expire": user.expire, **user.details}


def _comment(group: Group) -> dict[str, str]:
    return {"comment": group.comment} if group.comment is not None else {}


def _known_privileges(text: str | None) -> set[str]:
    names = set(split_list(text))
    for name in sorted(names - PRIVILEGES):
        raise PveError(500, f"invalid privilege '{name}'")
    return names
