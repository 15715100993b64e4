# SPDX-License-Identifier: Apache-2.0
"""A CT's notes in Proxmox (the option `description`): the pod and the installation that own it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pvecri.model import FrontSandbox, SandboxConfig, UserNamespaceDecision, UserNamespaceKind, Vmid

_SANDBOX_LINE = re.compile(r"^sandbox: ([0-9a-f]{64})\s*$", re.MULTILINE)
_INSTALLATION_LINE = re.compile(r"^installation: (\w+)\s*$", re.MULTILINE)
_CT_LINE = re.compile(r"^CT: (\d+)\s*$", re.MULTILINE)
_POD_LINE = re.compile(r"^Kubernetes pod (\S+)(?: of [\w-]+)?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Owner:
    """The owner in a CT's notes: the sandbox's and the installation's id, the pod as NAMESPACE/NAME, the VMID.

    Empty, or 0, if missing. A clone and a restored backup have the notes of the original: they prove nothing.
    """

    sandbox: str = ""
    installation: str = ""
    pod: str = ""
    vmid: int = 0


_USER_NAMESPACES = {
    UserNamespaceKind.CT: "the CT's (unprivileged)",
    UserNamespaceKind.POD: "the pod's own, inside a privileged CT",
    UserNamespaceKind.NODE: "the node's",
}


def describe(
    sandbox: SandboxConfig,
    sandbox_id: str,
    installation: str,
    user_namespace: UserNamespaceDecision,
    vmid: Vmid,
    front: FrontSandbox | None = None,
) -> str:
    """The notes: the pod for a person in Proxmox's web interface, and the owner for `owner`."""
    metadata = sandbox.metadata
    podless = front is not None and front.kind.is_podless
    what = f"Container {metadata.name}" if podless else f"Kubernetes pod {metadata.namespace}/{metadata.name}"
    return (
        # Proxmox renders notes as Markdown: only a blank line ends a line.
        f"{what}{'' if front is None else f' of {front.kind.value}'}\n\n"
        f"uid: {metadata.uid}\n\n"
        f"attempt: {metadata.attempt}\n\n"
        f"user namespace: {_USER_NAMESPACES[user_namespace.kind]}; {_one_line(user_namespace.detail)}\n\n"
        # A copy of the CT has another VMID than its notes.
        f"CT: {vmid}\n\n"
        f"sandbox: {sandbox_id}\n\n"
        f"installation: {installation}\n"
    )


def _one_line(text: str) -> str:
    # A request's text must not forge a line of its own: `owner` parses lines.
    return " ".join(text.split())


def owner(notes: str) -> Owner:
    """The owner that the notes name."""

    def value(line: re.Pattern[str]) -> str:
        found = line.search(notes)
        return found[1] if found else ""

    return Owner(
        sandbox=value(_SANDBOX_LINE),
        installation=value(_INSTALLATION_LINE),
        pod=value(_POD_LINE),
        vmid=int(value(_CT_LINE) or 0),
    )
