# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cluster's options, and what they restrict: which tags an account may set (datacenter.cfg(5))."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

KEPT = ("next-id", "user-tag-access", "registered-tags")
"""The options that the node keeps; others are accepted and forgotten."""


def changed(kept: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options after a PUT."""
    deleted = str(values.get("delete", "")).split(",")
    options = {name: value for name, value in kept.items() if name not in deleted}
    for name in KEPT:
        if text := values.get(name):
            options[name] = _parsed(name, str(text))
    return options


def _parsed(name: str, text: str) -> Any:
    if name == "registered-tags":
        return text.split(";")
    parts = dict(part.split("=", 1) for part in text.split(","))
    if tags := parts.get("user-allow-list"):
        return {**parts, "user-allow-list": tags.split(";")}
    return parts


def allowed_tags(options: Mapping[str, Any], *, administrator: bool, visible: Set[str]) -> set[str]:
    """`allowed-tags` of an account: those in lists that apply to it, and those of the guests that it sees."""
    access, registered = options.get("user-tag-access", {}), set(options.get("registered-tags", ()))
    mode = access.get("user-allow", "free")
    listed = set(access.get("user-allow-list", ())) if mode != "none" or administrator else set()
    seen = visible if mode in ("free", "existing") or administrator else set()
    return listed | seen | registered if administrator else (listed | seen) - registered


def refused_tag(options: Mapping[str, Any], allowed: Set[str], old: str, new: str) -> str:
    """A tag that an account without Sys.Modify on `/` may not add or remove; empty if it may do all."""
    free = options.get("user-tag-access", {}).get("user-allow", "free") == "free"
    for tag in sorted(set(split(old)) ^ set(split(new))):
        if tag in options.get("registered-tags", ()) or not (free or tag in allowed):
            return tag
    return ""


def split(tags: str) -> list[str]:
    """The tags of an option `tags`."""
    return [tag for tag in tags.replace(",", ";").replace(" ", ";").split(";") if tag]
