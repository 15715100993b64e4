# SPDX-License-Identifier: Apache-2.0
"""AppArmor: the default profile for containers, and which profiles the kernel has loaded."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pvecri.linux import programs

log = logging.getLogger(__name__)

DEFAULT_PROFILE = "pvecri-default"
LOADED = Path("/sys/kernel/security/apparmor/profiles")
PARSER_TIMEOUT = 60.0

# What a container has no business with, even as root: the kernel's switches that no namespace confines.
# Signals come from runc and crun, which have profiles of their own on some systems.
PROFILE_TEXT = f"""\
abi <abi/3.0>,
profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  signal (receive),
  signal (send) peer={DEFAULT_PROFILE},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},

  deny mount,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /proc/sys/kernel/{{core_pattern,modprobe,hotplug,kexec_load_disabled,modules_disabled}} w,
  deny /proc/sys/fs/binfmt_misc/** w,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/fs/bpf/** rwklx,
}}
"""


async def load_default() -> bool:
    """Load the default profile into the kernel, anew if need be; whether it is there. Needs apparmor_parser."""
    parser = shutil.which("apparmor_parser")
    if parser is None:
        log.warning("apparmor_parser is not installed: containers run without the profile %s", DEFAULT_PROFILE)
        return False
    command = [parser, "--replace", "--skip-cache"]
    ended = await programs.run(command, timeout=PARSER_TIMEOUT, stdin=PROFILE_TEXT.encode())
    if ended.returncode:
        log.warning("the profile %s cannot be loaded: %s", DEFAULT_PROFILE, ended.stderr.strip())
        return False
    return True


def is_loaded(profile: str) -> bool:
    """Whether the kernel knows a profile by this name."""
    try:
        lines = LOADED.read_text().splitlines()
    except OSError:
        return False
    return any(line.rpartition(" (")[0] == profile for line in lines)
