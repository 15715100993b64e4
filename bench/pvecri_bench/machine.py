# SPDX-License-Identifier: Apache-2.0
"""The machine that figures come from, in a line."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import msgspec
import psutil

PROGRAMS = {
    "containerd": ("containerd", "--version"),
    "runc": ("runc", "--version"),
    "crun": ("crun", "--version"),
    "conmon": ("conmon", "--version"),
    "lxc": ("lxc-start", "--version"),
    "skopeo": ("skopeo", "--version"),
}
_VERSION = re.compile(r"\d+\.\d+[\w.~+-]*")


class Machine(msgspec.Struct, frozen=True):
    """What of a machine bears on the figures. `load` is the load average of the last minute before the run."""

    cores: int
    memory_mib: int
    system: str
    kernel: str
    cgroups: str
    python: str
    load: float
    versions: dict[str, str]

    def line(self) -> str:
        """All of it."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.cores} cores, {self.memory_mib / 1024:.0f} GiB, {self.system}, Linux {self.kernel}, "
            f"cgroup {self.cgroups}, Python {self.python}, {versions}; load before {self.load:.1f}"
        )


def describe() -> Machine:
    """This machine."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_mib=psutil.virtual_memory().total >> 20,
        system=_system(),
        kernel=platform.release(),
        cgroups="v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        python=platform.python_version(),
        load=os.getloadavg()[0],
        versions={name: version for name, command in PROGRAMS.items() if (version := _version(*command))},
    )


def _system() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return release.get("PRETTY_NAME", platform.system())


def _version(*command: str) -> str:
    """The first thing in what the program says that looks like a version; empty when there is no program."""
    try:
        said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""
    match = _VERSION.search(said)
    return match[0] if match else ""
