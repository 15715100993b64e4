# SPDX-License-Identifier: Apache-2.0
"""The kernel: control groups, filesystems, user namespaces, AppArmor."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config
from pvecri.linux import cgroups

SUBJECT = "kernel"

CONTROLLERS = frozenset({"cpu", "cpuset", "memory", "pids"})
"""Those that LXC and the OCI runtimes set limits with."""

MODPROBE_TIMEOUT = 10.0


def required(_: Config) -> Iterator[Finding]:
    """Privileges of the process itself."""
    if os.geteuid():
        yield Finding("problem", SUBJECT, "pvecri does not run as root", "start it as root")


def used_later(config: Config, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Iterator[Finding]:
    """What pods need of the kernel. `proc` and `sys` are its filesystems."""
    if missing := CONTROLLERS - cgroups.detect().controllers:
        yield Finding(
            "problem",
            SUBJECT,
            f"without the cgroup controllers {', '.join(sorted(missing))}",
            "look for cgroup_disable in /proc/cmdline",
        )
    if config.images.driver in ("overlay", "auto") and not _has_filesystem("overlay", proc):
        yield Finding(
            "problem",
            SUBJECT,
            "the kernel has no overlay filesystem",
            "`pvecri setup` loads it; or modprobe overlay",
        )
    enabled = sys / "module/apparmor/parameters/enabled"
    if not enabled.exists() or enabled.read_text().strip() != "Y":
        yield Finding("warning", SUBJECT, "AppArmor is off: pods and containers run without profiles")
    elif shutil.which("apparmor_parser") is None:
        yield Finding(
            "warning", SUBJECT, "apparmor_parser is missing: no profile for containers", "install apparmor"
        )


def _has_filesystem(name: str, proc: Path) -> bool:
    """Whether the kernel has it, or would load it at the first mount."""
    if any(line.split()[-1] == name for line in (proc / "filesystems").read_text().splitlines()):
        return True
    modprobe = shutil.which("modprobe")
    if modprobe is None:
        return False
    command = [modprobe, "--dry-run", "--quiet", name]
    return subprocess.run(command, check=False, timeout=MODPROBE_TIMEOUT).returncode == 0
