# SPDX-License-Identifier: Apache-2.0
"""The account of docs/proxmox-setup.md, made by the API calls that its commands make.

The commands are read from the document, so that what is documented is what is used and tested.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

SETUP = Path(__file__).resolve().parents[3] / "docs/proxmox-setup.md"
POOL = "kubernetes"
USER = "kube@pve"
BASIC_ROLES = frozenset({"KubePods", "KubeNode", "KubeRootfs", "KubeTemplates", "KubePrivileged"})
"""What pods need; the document has further roles for settings that not everybody uses."""

_COMMAND = re.compile(r"^    .*?\bpveum ([^\\|;\n#]+)", re.MULTILINE)
"""A command in a block of code, up to what a shell would make of the rest of its line."""
_POSITIONAL = {
    "pool add": ("poolid",),
    "role add": ("roleid",),
    "user add": ("userid",),
    "acl modify": ("path",),
    "user token add": ("userid", "tokenid"),
}
_CALLS = {
    "pool add": ("POST", "/pools"),
    "role add": ("POST", "/access/roles"),
    "user add": ("POST", "/access/users"),
    "acl modify": ("PUT", "/access/acl"),
    "user token add": ("POST", "/access/users/{userid}/token/{tokenid}"),
}


@dataclass(frozen=True)
class Call:
    """One request of the API."""

    method: str
    path: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Administrator:
    """How to reach a node with the rights to make accounts on it."""

    url: str
    token_id: str
    token_secret: str
    tls: ssl.SSLContext

    def ask(self, method: str, path: str, parameters: Mapping[str, str]) -> object:
        """The `data` of the answer. Raises urllib.error.HTTPError; its `reason` is Proxmox's message."""
        data = urllib.parse.urlencode(parameters).encode()
        headers = {"Authorization": f"PVEAPIToken={self.token_id}={self.token_secret}"}
        request = urllib.request.Request(f"{self.url}/api2/json{path}", data, headers, method=method)
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls))
        with urllib.request.build_opener(*handlers).open(request, timeout=60) as response:
            answer: dict[str, object] = json.load(response)
        return answer["data"]


@dataclass(frozen=True)
class Account:
    """What the daemon is configured with."""

    token_id: str
    token_secret: str
    pool: str = POOL


def documented_calls(text: str, names: Mapping[str, str], roles: Collection[str] = BASIC_ROLES) -> list[Call]:
    """The calls of all `pveum` commands of a document, in its order. Pure.

    `names` are put in the place of the document's: `NODE`, `local-lvm`, `local`, … Roles that are not in `roles`
    are neither made nor given.
    """
    calls = [_call(found.group(1), names) for found in _COMMAND.finditer(text)]
    return [call for call in calls if _role_of(call) in (None, *roles)]


class AlreadyThere(Exception):
    """What a call would make exists."""


def _ask(administrator: Administrator, call: Call) -> object:
    """Raises AlreadyThere or urllib.error.URLError."""
    try:
        return administrator.ask(call.method, call.path, call.parameters)
    except urllib.error.HTTPError as error:
        if "already exists" in error.reason or "Token already exists." in error.read().decode():
            raise AlreadyThere from None
        raise


def _role_of(call: Call) -> str | None:
    return call.parameters.get("roleid") or call.parameters.get("roles")


def _call(command: str, names: Mapping[str, str]) -> Call:
    words = shlex.split(command)
    action = " ".join(words[:3]) if words[:2] == ["user", "token"] else " ".join(words[:2])
    rest = words[len(action.split()) :]
    positional = _POSITIONAL[action]
    values = dict(zip(positional, rest, strict=False))
    options = rest[len(positional) :]
    values |= {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    values.pop("output-format", None)
    named = {key: "/".join(names.get(part, part) for part in value.split("/")) for key, value in values.items()}
    method, template = _CALLS[action]
    path = template.format(**{key: urllib.parse.quote(value) for key, value in named.items()})
    in_path = {key for key in named if f"{{{key}}}" in template}
    return Call(method, path, {key: value for key, value in named.items() if key not in in_path})


def make_account(
    administrator: Administrator, names: Mapping[str, str], roles: Collection[str] = BASIC_ROLES
) -> Account:
    """Make the documented account. If it is there already, it gets a new secret.

    `names`: see `documented_calls`; `NODE` must be among them. Raises urllib.error.URLError.
    """
    for call in documented_calls(SETUP.read_text(), names, roles):
        try:
            answer = _ask(administrator, call)
        except AlreadyThere:
            if "/token/" not in call.path:
                continue
            answer = administrator.ask("PUT", call.path, {"regenerate": "1"})
        if "/token/" in call.path:
            account = _account(answer)
    return account


def give_roles(administrator: Administrator, names: Mapping[str, str], roles: Collection[str]) -> None:
    """Give the account more of the document's roles. Raises urllib.error.URLError."""
    for call in documented_calls(SETUP.read_text(), names, roles):
        if _role_of(call) is not None:
            with contextlib.suppress(AlreadyThere):
                _ask(administrator, call)


def _account(answer: object) -> Account:
    assert isinstance(answer, dict)
    return Account(answer["full-tokenid"], answer["value"])
