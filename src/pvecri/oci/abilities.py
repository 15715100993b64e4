# SPDX-License-Identifier: Apache-2.0
"""What this machine and its programs can do, found out once when the daemon starts.

A pod may ask for more than a machine has: a capability that root lacks, a cgroup controller that is not there, a
security module. The spec builder asks here and writes only what can be had.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pvecri.config import Config, ConfigError
from pvecri.linux import cgroups, programs
from pvecri.linux.cgroups import Cgroups
from pvecri.oci import apparmor, capabilities

RUNC_READS_MAPPINGS_SINCE = (1, 1, 10)
CAP_SYS_RESOURCE = "CAP_SYS_RESOURCE"
PROBE_TIMEOUT = 30.0


@dataclass(frozen=True)
class OciRuntime:
    """The OCI runtime program. `kind` is `runc` or `crun`, as its version text names it."""

    path: str
    kind: str
    version: tuple[int, ...]
    mount_options: frozenset[str] = frozenset()

    @property
    def recursive_readonly(self) -> bool:
        """Whether it can make a mount read-only together with the mounts below it."""
        return "rro" in self.mount_options

    @property
    def executes_at_the_root(self) -> bool:
        """Whether a command starts in / when nothing is said, and not where the container's own process does."""
        return self.kind == "crun"

    @property
    def wants_mappings_with_userns_path(self) -> bool:
        """Whether a spec that joins a user namespace by path must repeat its mappings.

        Older runc needs them; newer runc reads them from the namespace and refuses the repetition.
        """
        return self.kind == "runc" and self.version < RUNC_READS_MAPPINGS_SINCE


@dataclass(frozen=True)
class Abilities:
    """See the module.

    `lowest_oom_score_adj` is the least value that a child of ours may be given; `apparmor_default` says whether
    the default profile is loaded.
    """

    cgroups: Cgroups
    oci_runtime: OciRuntime
    conmon: str
    capabilities: frozenset[str]
    lowest_oom_score_adj: int
    apparmor: bool
    apparmor_default: bool
    selinux: bool
    swap_limit: bool
    controllers: frozenset[str] = field(default_factory=frozenset)


async def discover(config: Config) -> Abilities:
    """Look at the machine; ConfigError when a program that pvecri needs is missing."""
    trees = cgroups.detect()
    held = capabilities.effective()
    confines = _enabled(Path("/sys/module/apparmor/parameters/enabled"), "Y")
    current = int(Path("/proc/self/oom_score_adj").read_text())
    return Abilities(
        cgroups=trees,
        oci_runtime=await _oci_runtime(config, trees),
        conmon=_program(config.runtime.conmon, "runtime.conmon"),
        capabilities=held,
        lowest_oom_score_adj=-1000 if CAP_SYS_RESOURCE in held else current,
        apparmor=confines,
        apparmor_default=confines and await apparmor.load_default(),
        selinux=Path("/sys/fs/selinux/enforce").exists(),
        swap_limit=_swap_limit(trees),
        controllers=trees.controllers,
    )


def _swap_limit(trees: Cgroups) -> bool:
    """Whether the kernel limits swap by cgroup (swap accounting is a boot option on version 1)."""
    memory = trees.v1.get("memory")
    if memory is not None:
        return (memory / "memory.memsw.limit_in_bytes").exists()
    # The root group of version 2 has no swap files itself: ask whether the kernel has swap accounting.
    return "memory" in trees.controllers and Path("/proc/swaps").exists()


def _enabled(path: Path, word: str) -> bool:
    return path.exists() and path.read_text().strip() == word


def _program(name: str, setting: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(f"{setting}: the program {name!r} is not installed")
    return path


async def _oci_runtime(config: Config, trees: Cgroups) -> OciRuntime:
    setting = config.runtime.oci_runtime
    if setting == "auto":
        # crun starts faster, and refuses hosts that have cgroup v1 in part.
        setting = "crun" if trees.pure_v2 and shutil.which("crun") else "runc"
    path = _program(setting, "runtime.oci_runtime")
    text = await _output(path, "--version")
    match = re.match(r"(runc|crun) version (\d+(?:\.\d+)*)", text)
    if match is None:
        raise ConfigError(f"runtime.oci_runtime: {path} is neither runc nor crun: {text.strip()[:80]!r}")
    version = tuple(int(part) for part in match[2].split("."))
    return OciRuntime(path, match[1], version, _mount_options(await _output(path, "features")))


def _mount_options(features: str) -> frozenset[str]:
    """The mount options that a runtime knows (OCI runtime-spec, features.md); older ones do not tell."""
    try:
        return frozenset(json.loads(features).get("mountOptions", ()))
    except ValueError:
        return frozenset()


async def _output(*command: str) -> str:
    return (await programs.run(command, timeout=PROBE_TIMEOUT)).stdout.decode(errors="replace")
