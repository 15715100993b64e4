# SPDX-License-Identifier: Apache-2.0
"""UPIDs, the unique ids of Proxmox's tasks."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

# pstart, clock ticks since boot, has nine digits after 497 days of uptime.
_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9][A-Za-z0-9-]*):(?P<pid>[0-9A-Fa-f]{8}):(?P<pstart>[0-9A-Fa-f]{8,9}):"
    r"(?P<start>[0-9A-Fa-f]{8}):(?P<kind>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)


class Upid(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of `UPID:node:pid:pstart:starttime:type:id:user:` (PVE::Tools::upid_decode).

    `start_time` is seconds since the epoch by the node's clock; `kind` is the worker type such as `vzcreate`;
    `id` is mostly a VMID; `user` includes the token (`cri@pve!t1`).
    """

    text: str
    node: str
    pid: int
    start_time: int
    kind: str
    id: str
    user: str

    def __str__(self) -> str:
        return self.text

    @property
    def path(self) -> str:
        """The task's API path, escaped: a UPID contains `:`, `@` and `!`."""
        return f"/nodes/{self.node}/tasks/{quote(self.text, safe='')}"


def parse(text: str) -> Upid:
    """Parse a UPID; ValueError."""
    match = _UPID.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a UPID")
    return Upid(
        text=text,
        node=match["node"],
        pid=int(match["pid"], 16),
        start_time=int(match["start"], 16),
        kind=match["kind"],
        id=match["id"],
        user=match["user"],
    )
