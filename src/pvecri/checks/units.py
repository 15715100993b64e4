# SPDX-License-Identifier: Apache-2.0
"""pvecri's units of systemd (docs/operations/reboot.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pvecri.checks.finding import Finding

SUBJECT = "units"

DAEMON, SHUTDOWN = "pvecri.service", "pvecri-shutdown.service"

DIRECTORIES = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
"""Of units, below /; the first that has one takes precedence (systemd.unit(5))."""


def check(root: Path = Path("/")) -> Iterator[Finding]:
    """Whether pods will end in order when the node shuts down, if the daemon is run by systemd."""
    daemon = _find(root, DAEMON)
    if daemon is None:
        return
    consequence = "when the node shuts down Proxmox ends pods, a few at a time, and kills them after a second"
    if _find(root, SHUTDOWN) is None:
        yield Finding("warning", SUBJECT, f"there is no {SHUTDOWN}: {consequence}", f"install it beside {daemon}")
    elif SHUTDOWN not in daemon.read_text():
        message = f"{daemon} does not start {SHUTDOWN}: {consequence}"
        yield Finding("warning", SUBJECT, message, "replace it by this version's")


def _find(root: Path, name: str) -> Path | None:
    return next((path for each in DIRECTORIES if (path := root / each / name).exists()), None)
