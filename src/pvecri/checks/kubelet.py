# SPDX-License-Identifier: Apache-2.0
"""The settings of the kubelet on this node, if there is one (docs/kubelet.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config

SUBJECT = "kubelet"

CONFIG = Path("/var/lib/kubelet/config.yaml")
"""kubeadm's."""
DEFAULTS = "etc/default/kubelet"
ARGUMENTS = (
    "var/lib/kubelet/kubeadm-flags.env",
    DEFAULTS,
    "etc/systemd/system/kubelet.service.d/*.conf",
)
"""Files with the kubelet's arguments, below /."""

GATE = "PodAndContainerStatsFromCRI"
MIN_PIDS = 64


def check(config: Config, path: Path = CONFIG, root: Path = Path("/")) -> Iterator[Finding]:
    """What in the KubeletConfiguration at `path` does not suit pvecri; nothing if there is no such file."""
    if not path.exists():
        return
    try:
        settings = _read(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield Finding("problem", SUBJECT, f"{path}: {error}".replace("\n", " "), "mend the file")
        return
    arguments = _arguments(root)
    ours = f"unix://{config.runtime.socket}"
    given = re.search(r"""--container-runtime-endpoint[= ]"?([^\s"\\]+)""", arguments)
    endpoint = given[1] if given else str(settings.get("containerRuntimeEndpoint", ""))
    if endpoint and endpoint != ours:
        message = f"{path}: the kubelet uses {endpoint}, not pvecri"
        yield Finding(
            "warning",
            SUBJECT,
            message,
            f"unless another runtime is in front, set containerRuntimeEndpoint: {ours}",
        )
    gates = settings.get("featureGates") or {}
    gate = bool(isinstance(gates, dict) and gates.get(GATE)) or f"{GATE}=true" in arguments
    if not gate and endpoint in ("", ours):  # of another runtime's pods the kubelet knows the usage without
        message = (
            f"{path}: without the feature gate {GATE} the usage of pods is 0, and eviction ranks them as equal"
        )
        yield Finding("warning", SUBJECT, message, f"set featureGates: {{{GATE}: true}}")
    if settings.get("cgroupsPerQOS") is False:
        message = f"{path}: with cgroupsPerQOS: false pods have no cgroups to read limits from"
        yield Finding("problem", SUBJECT, message, "remove the setting")
    pids = settings.get("podPidsLimit")
    if isinstance(pids, int) and 0 < pids < MIN_PIDS:
        message = f"{path}: podPidsLimit {pids} is too little for a pod's init and monitors"
        yield Finding("warning", SUBJECT, message, f"set at least {MIN_PIDS}")


def _arguments(root: Path) -> str:
    """The text of the files with the kubelet's arguments, without what another of them overrides."""
    texts = {file: file.read_text() for each in ARGUMENTS for file in sorted(root.glob(each))}
    of_administrator = texts.get(root / DEFAULTS, "")
    if re.search(r"^KUBELET_EXTRA_ARGS=", of_administrator, re.MULTILINE):
        # kubeadm's unit reads it by EnvironmentFile=, which overrides each Environment= (systemd.exec(5)).
        overridden = re.compile(r'^Environment="KUBELET_EXTRA_ARGS=[^"]*"', re.MULTILINE)
        texts = {file: overridden.sub("", text) for file, text in texts.items()}
    return "\n".join(texts.values())


def max_pods(path: Path = CONFIG) -> int | None:
    """maxPods of a KubeletConfiguration; None if it is unset or cannot be read."""
    try:
        value = _read(path).get("maxPods")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return value if isinstance(value, int) else None


def _read(path: Path) -> dict[str, Any]:
    settings = yaml.safe_load(path.read_text())
    if not isinstance(settings, dict):
        raise ValueError("is not a KubeletConfiguration")  # noqa: TRY004  # of the file, as a syntax error
    return settings
