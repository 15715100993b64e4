# SPDX-License-Identifier: Apache-2.0
"""Features of this node and its programs, detected once at the daemon's start.

A pod may request what a node lacks: a capability that root does not have, a cgroup controller, a security module.
The OCI runtimes fail on any of these, so the spec builder writes only what is supported.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pvecri.config.settings import Config, ConfigError
from pvecri.linux import cgroups, programs
from pvecri.linux.cgroups import Cgroups
from pvecri.oci import apparmor, capabilities

RUNC_READS_USERNS_MAPPINGS = (1, 1, 10)
CAP_SYS_RESOURCE = "CAP_SYS_RESOURCE"
PROBE_TIMEOUT = 30.0


@dataclass(frozen=True)
class RuntimeBinary:
    """The OCI runtime's program; `kind` is `runc` or `crun`, from its --version output.

    `checkpoints` is whether it can use CRIU: crun of Debian 12 is built without.
    """

    path: str
    kind: str
    version: tuple[int, ...]
    mount_options: frozenset[str] = frozenset()
    checkpoints: bool = True

    @property
    def recursive_readonly(self) -> bool:
        """Whether it supports `rro`: read-only with all submounts (CRI recursive_read_only)."""
        return "rro" in self.mount_options

    @property
    def exec_ignores_cwd(self) -> bool:
        """Whether `exec` without --cwd starts in / instead of the spec's `process.cwd`."""
        return self.kind == "crun"

    @property
    def follows_symlinked_dev(self) -> bool:
        """Whether it follows an image's /dev to the node's files: runc 1.1 makes and replaces entries there.

        It joins `dev/ptmx`, `dev/fd` and others to the root's path before pivot_root(2). For no version of runc is
        this known to be mended; crun resolves all paths inside the root.
        """
        return self.kind == "runc"

    @property
    def needs_mappings_with_userns_path(self) -> bool:
        """Whether a spec that joins a user namespace by path must have its mappings.

        runc before 1.1.10 needs them; later ones read them from the namespace and refuse both together.
        """
        return self.kind == "runc" and self.version < RUNC_READS_USERNS_MAPPINGS


@dataclass(frozen=True)
class HostFeatures:
    """`capabilities` are the daemon's own: it cannot grant others. `conmon` is a path.

    `lowest_oom_score_adj` is the lowest value that the daemon may give a child; `apparmor_default` is whether the
    default profile is loaded.
    """

    cgroups: Cgroups
    oci_runtime: RuntimeBinary
    conmon: str
    capabilities: frozenset[str]
    lowest_oom_score_adj: int
    apparmor: bool
    apparmor_default: bool
    selinux: bool
    swap_limit: bool
    controllers: frozenset[str] = field(default_factory=frozenset)


async def discover(config: Config) -> HostFeatures:
    """Detect the features; ConfigError names the setting of a required program that is missing."""
    trees = cgroups.detect()
    own = capabilities.effective()
    # On a kernel without AppArmor the OCI runtimes fail if a spec has a profile.
    apparmor_enabled = _enabled(Path("/sys/module/apparmor/parameters/enabled"), "Y")
    # The kernel raises oom_score_adj for anybody, and lowers it with CAP_SYS_RESOURCE only.
    current = int(Path("/proc/self/oom_score_adj").read_text())
    return HostFeatures(
        cgroups=trees,
        oci_runtime=await find_oci_runtime(config, trees),
        conmon=_program(config.runtime.conmon, "runtime.conmon"),
        capabilities=own,
        lowest_oom_score_adj=-1000 if CAP_SYS_RESOURCE in own else current,
        apparmor=apparmor_enabled,
        apparmor_default=apparmor_enabled and await apparmor.load_default(),
        selinux=Path("/sys/fs/selinux/enforce").exists(),
        swap_limit=_swap_limit(trees),
        controllers=trees.controllers,
    )


def _swap_limit(trees: Cgroups) -> bool:
    """Whether the kernel limits swap per cgroup; version 1 needs `swapaccount=1` on the kernel's command line."""
    memory = trees.v1.get("memory")
    if memory is not None:
        return (memory / "memory.memsw.limit_in_bytes").exists()
    # The root group of version 2 has no memory.swap.* files to test for.
    return "memory" in trees.controllers and Path("/proc/swaps").exists()


def _enabled(path: Path, word: str) -> bool:
    return path.exists() and path.read_text().strip() == word


def _program(name: str, setting: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(f"{setting}: the program {name!r} is not installed")
    return path


async def find_oci_runtime(config: Config, trees: Cgroups) -> RuntimeBinary:
    """The program of runtime.oci_runtime; ConfigError if it is missing, or neither runc nor crun."""
    setting = config.runtime.oci_runtime
    if setting == "auto":
        # crun starts faster, and refuses hybrid hosts ("cgroups in hybrid mode not supported").
        setting = "crun" if trees.pure_v2 and shutil.which("crun") else "runc"
    path = _program(setting, "runtime.oci_runtime")
    text = await _output(path, "--version")
    match = re.match(r"(runc|crun) version (\d+(?:\.\d+)*)", text)
    if match is None:
        raise ConfigError(f"runtime.oci_runtime: {path} is neither runc nor crun: {text.strip()[:80]!r}")
    version = tuple(int(part) for part in match[2].split("."))
    checkpoints = match[1] == "runc" or "+CRIU" in text.split()
    return RuntimeBinary(path, match[1], version, _mount_options(await _output(path, "features")), checkpoints)


def _mount_options(features: str) -> frozenset[str]:
    """`mountOptions` of `features` (runtime-spec, features.md); none for a version without that command."""
    try:
        return frozenset(json.loads(features).get("mountOptions", ()))
    except ValueError:
        return frozenset()


async def _output(*command: str) -> str:
    return (await programs.run(command, timeout=PROBE_TIMEOUT)).stdout.decode(errors="replace")
