# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a client can tell two answers apart by: status, error texts, and the shape of the data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer of either node, with paths and ids made alike."""

    status: int
    reason: str
    body: Any
    exitstatus: str | None = None

    def traits(self) -> dict[str, str]:
        """What is compared, each by name."""
        body = self.body if isinstance(self.body, Mapping) else {}
        return {
            "status": str(self.status),
            "reason": self.reason,
            "message": str(body.get("message")),
            "errors": json.dumps(body.get("errors"), sort_keys=True),
            "data": shape(body.get("data")),
            "task": str(self.exitstatus),
        }


def shape(value: Any) -> str:
    """The keys and JSON types of a value. Elements of a list count once for each different shape."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "UPID" if value.startswith("UPID:") else "string"
        case list():
            return "[" + " | ".join(sorted({shape(item) for item in value})) + "]"
        case dict():
            return "{" + ", ".join(f"{key}: {shape(value[key])}" for key in sorted(value)) + "}"
    raise TypeError(type(value))


def difference(expected: Answer, actual: Answer) -> str:
    """What differs, one ``trait: expected -> actual`` a line; empty when nothing does."""
    ours = actual.traits()
    return "\n".join(
        f"{name}: {theirs} -> {ours[name]}" for name, theirs in expected.traits().items() if theirs != ours[name]
    )


def alike(text: str, places: Mapping[str, str]) -> str:
    """``text`` with this node's directories replaced by a Proxmox node's, and without what is never the same.

    skopeo's status for an image that is not there is 1 or 2, by its version.
    """
    for ours, theirs in places.items():
        text = text.replace(ours, theirs)
    text = re.sub(r"('skopeo .*)\.tmp\.\d+' failed: exit code [12]", r"\1.tmp.N' failed", text)
    return re.sub(r"pveupload-[0-9a-f]+", "pveupload-X", text)
