# SPDX-License-Identifier: Apache-2.0
"""AppArmor: the default profile of containers, and the profiles that are loaded."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pvecri.linux import programs

log = logging.getLogger(__name__)

DEFAULT_PROFILE = "pvecri-default"
LOADED = Path("/sys/kernel/security/apparmor/profiles")
PARSER_TIMEOUT = 60.0

# Denies files of /proc and /sys that no namespace isolates. Signals may come from any peer: some
# distributions confine runc and crun by profiles of their own.
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
    """Load or replace the default profile by apparmor_parser(8); whether it is loaded. Failures are logged."""
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
    """Whether a profile of this name is loaded."""
    try:
        # Each line is `NAME (MODE)`, and a name may have blanks.
        lines = LOADED.read_text().splitlines()
    except OSError:
        return False
    return any(line.rpartition(" (")[0] == profile for line in lines)
