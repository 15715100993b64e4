# SPDX-License-Identifier: Apache-2.0
"""Syntax of Proxmox firewall options and rules in annotations and settings. Pure.

Options are `policy_in=DROP log_level_in=info`, a rule is `in ACCEPT proto=tcp dport=80,443`: the names of
Proxmox's API, separated by blanks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pvecri.model import FirewallRule

OPTIONS = frozenset(
    {"policy_in", "policy_out", "log_level_in", "log_level_out", "dhcp", "ipfilter", "macfilter", "ndp", "radv"}
)
"""Options of PUT /nodes/{node}/lxc/{vmid}/firewall/options; pvecri itself sets `enable`."""
RULE_OPTIONS = frozenset({"proto", "dport", "sport", "source", "dest", "macro", "icmp-type", "log"})
"""Options of POST …/firewall/rules."""
DIRECTIONS = ("in", "out", "group")
POLICIES = ("ACCEPT", "REJECT", "DROP")

_ACTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,19}", re.ASCII)  # security groups of PVE::Firewall


def parse_options(text: str) -> dict[str, str]:
    """Parse firewall options; ValueError."""
    options = _pairs(text.split(), OPTIONS)
    for name in ("policy_in", "policy_out"):
        if name in options and options[name] not in POLICIES:
            raise ValueError(f"{name}: {options[name]!r} is not one of {', '.join(POLICIES)}")
    return options


def parse_rules(lines: Sequence[str]) -> tuple[FirewallRule, ...]:
    """Parse rules, one a line; blank lines are skipped. ValueError names the line."""
    return tuple(_rule(line) for line in lines if line.strip())


def _rule(line: str) -> FirewallRule:
    direction, action, *words = line.split() if len(line.split()) > 1 else (*line.split(), "")
    if direction not in DIRECTIONS:
        raise ValueError(f"{line.strip()!r}: does not begin with one of {', '.join(DIRECTIONS)}")
    if direction == "group" and not _ACTION.fullmatch(action):
        raise ValueError(f"{line.strip()!r}: {action!r} is not a name of a security group")
    if direction != "group" and action not in POLICIES:
        raise ValueError(f"{line.strip()!r}: {action!r} is not one of {', '.join(POLICIES)}")
    try:
        return FirewallRule(direction=direction, action=action, options=_pairs(words, RULE_OPTIONS))
    except ValueError as error:
        raise ValueError(f"{line.strip()!r}: {error}") from error


def _pairs(words: Sequence[str], known: frozenset[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known or not value or key in pairs:
            raise ValueError(f"{word!r} is not one of {', '.join(sorted(known))}, each once and with =VALUE")
        pairs[key] = value
    return pairs
