# SPDX-License-Identifier: AGPL-3.0-or-later
"""The file format of a CT's config (/etc/pve/lxc/VMID.conf): text to values and back. No I/O.

The current config comes first, then the sections ``[pve:pending]`` and one ``[name]`` a snapshot. In each:
the description as ``#`` lines (URL-encoded), the options sorted, the environment as
``lxc.environment.runtime`` lines, the raw LXC keys last.
"""

from __future__ import annotations

import functools
import hashlib
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from fakepve import schema as pve_schema

Config = dict[str, Any]
"""A CT's options as the API shows them: str, int or float; ``lxc`` is a list of [key, value]."""

PENDING = "pve:pending"
ENVIRONMENT = "lxc.environment.runtime"
_SECTION = re.compile(r"^\[([A-Za-z0-9:_.-]+)\]$")
# Proxmox encodes what is not printable ASCII, and the characters its parser could trip over.
_SAFE_IN_DESCRIPTION = " !\"#$&'()*+,-./;<=>?@[\\]^_`{|}~"
# Options of a config that are no parameter of the API, with their types.
_INTERNAL_INTEGERS = frozenset({"template", "snaptime"})


@dataclass
class CtConf:
    """One config file."""

    config: Config = field(default_factory=dict)
    pending: Config = field(default_factory=dict)
    """Option -> new value, or None for an option to delete at the next start."""
    snapshots: dict[str, Config] = field(default_factory=dict)


def dump(conf: CtConf) -> str:
    """The file's text."""
    parts = [_section(conf.config)]
    if conf.pending:
        parts.append(f"[{PENDING}]\n{_pending_section(conf.pending)}")
    parts += [f"[{name}]\n{_section(conf.snapshots[name])}" for name in sorted(conf.snapshots)]
    return "\n".join(parts)


def parse(text: str) -> CtConf:
    """The config in ``text``. Lines that are no option are dropped, as Proxmox drops them."""
    conf = CtConf()
    name, lines = "", []
    for line in [*text.splitlines(), "[end]"]:
        header = _SECTION.match(line)
        if header is None:
            lines.append(line)
            continue
        _store(conf, name, _parse_section(lines))
        name, lines = header.group(1), []
    return conf


def digest(text: str) -> str:
    """The digest by which clients tell versions of a config file apart."""
    # SHA-1 as in Proxmox, for telling versions apart and nothing else.
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _store(conf: CtConf, name: str, section: Config) -> None:
    if not name:
        conf.config = section
    elif name == PENDING:
        deleted = [key for key in str(section.pop("delete", "")).split(",") if key]
        conf.pending = {**section, **dict.fromkeys(deleted)}
    else:
        conf.snapshots[name] = section


def _pending_section(pending: Config) -> str:
    deleted = sorted(key for key, value in pending.items() if value is None)
    changed = {key: value for key, value in pending.items() if value is not None}
    if deleted:
        changed["delete"] = ",".join(deleted)
    return _section(changed)


def _section(config: Config) -> str:
    lines = [f"#{encode_description(line)}" for line in str(config.get("description", "")).splitlines()]
    lines += [
        f"{key}: {config[key]}" for key in sorted(config) if key not in {"description", "env", "lxc", "digest"}
    ]
    lines += [f"{ENVIRONMENT}: {entry}" for entry in str(config.get("env") or "").split("\0") if entry]
    lines += [f"{key}: {value}" for key, value in config.get("lxc", [])]
    return "".join(line + "\n" for line in lines)


def _parse_section(lines: list[str]) -> Config:
    config: Config = {}
    description, environment, raw = [], [], []
    for line in lines:
        if line.startswith("#"):
            description.append(urllib.parse.unquote(line[1:]))
            continue
        key, colon, value = line.partition(":")
        value = value.strip()
        if not colon:
            continue
        if key == ENVIRONMENT:
            environment.append(value)
        elif key.startswith("lxc."):
            raw.append([key, value])
        else:
            config[key] = typed(key, value)
    if description:
        config["description"] = "".join(line + "\n" for line in description)
    if environment:
        config["env"] = "\0".join(environment)
    if raw:
        config["lxc"] = raw
    return config


def encode_description(line: str) -> str:
    """One line of a description as the file holds it."""
    return urllib.parse.quote(line, safe=_SAFE_IN_DESCRIPTION)


def typed(key: str, value: str) -> str | int | float:
    """``value`` with the type the API gives the option ``key``."""
    kind = _option_types().get(key.rstrip("0123456789"), "string")
    if key in _INTERNAL_INTEGERS or kind in {"integer", "boolean"}:
        return int(value)
    if kind == "number":
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


@functools.cache
def _option_types() -> dict[str, str]:
    method = pve_schema.load().paths["/nodes/{node}/lxc/{vmid}/config"]["PUT"]
    properties = method["parameters"]["properties"]
    return {name.removesuffix("[n]"): schema.get("type", "string") for name, schema in properties.items()}
