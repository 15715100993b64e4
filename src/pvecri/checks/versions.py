# SPDX-License-Identifier: Apache-2.0
"""Versions of the kernel, of Proxmox VE and of the programs that pods need."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, ConfigError
from pvecri.errors import PvecriError
from pvecri.linux import cgroups, programs
from pvecri.oci import features

Version = tuple[int, ...]

TIMEOUT = 30.0
"""Seconds for one `--version`."""


@dataclass(frozen=True)
class Need:
    """The oldest version that pvecri needs for something, and what an older one does."""

    oldest: Version
    otherwise: str
    level: Literal["problem", "warning"] = "warning"

    def finding(self, subject: str, found: str, remedy: str) -> Finding:
        """What `check` prints of an older version; `found` names it, as in `conmon 2.0.20`."""
        needed = text(self.oldest)
        message = f"{found} is older than {needed}: {self.otherwise}"
        return Finding(self.level, subject, message, f"{remedy} {needed} or later")


def _tested(*oldest: int) -> Need:
    """The oldest version that pvecri is tested with: Debian 12's, which Proxmox VE 8 is based on."""
    return Need(oldest, "pvecri is not tested with it")


PROGRAMS: Mapping[str, Sequence[Need]] = {
    "runc": (_tested(1, 1, 5),),
    "crun": (_tested(1, 8, 1),),
    "conmon": (Need((2, 0, 23), "it has no --full-attach, and no container starts", "problem"), _tested(2, 1, 6)),
    "skopeo": (
        Need((1, 6), "its image proxy has no GetFullConfig, and no image can be pulled", "problem"),
        _tested(1, 9, 3),
    ),
    # libcrun's LIBCRIU_MIN_VERSION; runc needs 3.14 for the freezer of cgroup v2.
    "criu": (Need((3, 15), "CheckpointContainer fails"),),
    "lxc-start": (_tested(5, 0, 2),),
}
"""By program, in ascending order."""

KERNEL = (
    Need((5, 19), "overlayfs takes no idmapped layers, and no unprivileged pod starts", "problem"),
    _tested(6, 2),
    Need((6, 3), "it cannot idmap tmpfs, and pods with private files in one get the node's user namespace"),
)
"""In ascending order."""

PROXMOX = Need((8, 0), "pvecri is not tested with it, and its API differs")
HOST_MANAGED = (9, 1)
"""Since this version Proxmox VE pulls OCI images, and runs DHCP clients for CTs (`host-managed`)."""


async def check(config: Config) -> AsyncIterator[Finding]:
    """The kernel, and the programs that are installed; what prints no version yields nothing."""
    for each in kernel():
        yield each
    try:
        runtime = await features.find_oci_runtime(config, cgroups.detect())
    except ConfigError:
        pass  # executables.py reports it
    else:
        for each in _program(runtime.kind, runtime.path, runtime.version):
            yield each
    for kind, program in (
        ("conmon", config.runtime.conmon),
        ("skopeo", config.images.skopeo),
        ("criu", "criu"),
        ("lxc-start", "lxc-start"),
    ):
        path = shutil.which(program)
        if path and (version := await _version(path)):
            for each in _program(kind, path, version):
                yield each


def kernel(proc: Path = Path("/proc")) -> Iterator[Finding]:
    """The running kernel; `proc` is its filesystem."""
    release = (proc / "sys/kernel/osrelease").read_text().strip()
    if need := _unmet(KERNEL, parse(release)):
        yield need.finding("kernel", f"Linux {release}", "boot Linux")


def proxmox(config: Config, version: str) -> Iterator[Finding]:
    """What `version`, as GET /version has it, lacks for pods and for features that the configuration uses."""
    found = parse(version)
    if need := _unmet((PROXMOX,), found):
        yield need.finding("proxmox", f"Proxmox VE {version}", "upgrade to Proxmox VE")
    if not found or found >= HOST_MANAGED:
        return
    older = f"and this is Proxmox VE {version}"
    needs = f"needs Proxmox VE {text(HOST_MANAGED)}"
    if config.images.template_storage:
        yield Finding(
            "problem", "proxmox", f"images.template_storage {needs}, {older}: no image can be pulled", "unset it"
        )
    for name, each in config.network.classes.items():
        if each.ip == "dhcp":
            message = f'network.classes.{name}: ip = "dhcp" {needs}, {older}: its pods fail'
            yield Finding("problem", "proxmox", message, "upgrade it, or use fixed addresses (docs/networking.md)")


def _program(kind: str, path: str, version: Version) -> Iterator[Finding]:
    if need := _unmet(PROGRAMS[kind], version):
        yield need.finding("programs", f"{path} {text(version)}", f"install {kind}")


def _unmet(needs: Sequence[Need], version: Version) -> Need | None:
    """The first need that the version does not meet; an unknown version meets all."""
    return next((need for need in needs if version and version < need.oldest), None)


async def _version(path: str) -> Version:
    """What a program's `--version` prints; empty if it fails, or prints none."""
    try:
        ended = await programs.run([path, "--version"], timeout=TIMEOUT)
    except (PvecriError, OSError):
        return ()
    return parse(ended.stdout.decode(errors="replace"))


def parse(output: str) -> Version:
    """The first version in a text, such as (2, 1, 6) of `conmon version 2.1.6`; empty if there is none. Pure."""
    found = re.search(r"\d+(?:\.\d+)+", output)
    return tuple(map(int, found[0].split("."))) if found else ()


def text(version: Version) -> str:
    """A version as it is written."""
    return ".".join(map(str, version))
