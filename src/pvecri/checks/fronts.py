# SPDX-License-Identifier: Apache-2.0
"""CRI-O and containerd on this node that run pods through pvecri-runtime."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pvecri.checks import kubelet
from pvecri.checks.finding import Finding
from pvecri.config.settings import Config

SUBJECT = "fronts"

FILES = (
    "etc/containerd/config.toml",
    "etc/containerd/conf.d/*.toml",
    "etc/crio/crio.conf",
    "etc/crio/crio.conf.d/*",
)
PROGRAM = "pvecri-runtime"

CGROUP_V2 = "sys/fs/cgroup/cgroup.controllers"
"""Only there if version 2 has all controllers (cgroups(7))."""
KUBELET = kubelet.CONFIG.relative_to("/")
KUBELET_UNIT = "etc/systemd/system/kubelet.service.d/*.conf"


def check(config: Config, root: Path = Path("/")) -> Iterator[Finding]:
    """Whether their configuration can be read, and the program of each handler executed."""
    for file in sorted(found for each in FILES for found in root.glob(each)):
        try:
            content = tomllib.loads(file.read_text())
        except (OSError, ValueError) as error:
            yield Finding("warning", SUBJECT, f"{file}: {error}", "mend the file")
            continue
        programs = sorted({text for text in _programs(content) if Path(text).name == PROGRAM})
        for program in programs:
            if not os.access(root / program.lstrip("/"), os.X_OK):
                message = f"{file}: {program} cannot be executed"
                yield Finding("problem", SUBJECT, message, "install it (make -C runtime install)")
        if programs and not config.oci.enabled:
            yield Finding("problem", SUBJECT, f"{file} has {PROGRAM}, and oci.enabled is false", "set it to true")
        if programs and "crio" in file.parts and _kubelet_sees_no_usage(root):
            message = f"{file}: the kubelet has no usage of pods with {PROGRAM}: it follows no mount in cgroup v2"
            yield Finding(
                "warning", SUBJECT, message, "install packaging/crio/50-pvecri-kubelet.conf (docs/crio.md)"
            )


def _kubelet_sees_no_usage(root: Path) -> bool:
    """Whether cAdvisor in the node's kubelet opens cgroups of version 2 by openat2(2) (decision 0091)."""
    if not (root / CGROUP_V2).exists() or not (root / KUBELET).exists():
        return False
    return not any("openat2" in each.read_text() for each in root.glob(KUBELET_UNIT))


def _programs(value: object) -> Iterator[str]:
    """The OCI runtimes of all handlers in decoded TOML: containerd's BinaryName, CRI-O's runtime_path."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key in ("BinaryName", "runtime_path") and isinstance(each, str):
                yield each
            else:
                yield from _programs(each)
