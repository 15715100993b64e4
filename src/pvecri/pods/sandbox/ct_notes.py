# SPDX-License-Identifier: Apache-2.0
"""A CT's notes in Proxmox (the option `description`): the pod for a person who looks, and its owner for `owner`.

Proxmox renders them as Markdown, which may contain HTML, in the browser of an administrator. What a request says
is therefore in code spans only, where neither counts, and on one line: `owner` parses lines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pvecri.errors import escaped
from pvecri.model import Container, ContainerState, Sandbox, UserNamespaceKind
from pvecri.proxmox.ctspec import DESCRIPTION_MAX

_SANDBOX_LINE = re.compile(r"^sandbox: ([0-9a-f]{64})\s*$", re.MULTILINE)
_INSTALLATION_LINE = re.compile(r"^installation: (\w+)\s*$", re.MULTILINE)
_CT_LINE = re.compile(r"^CT: (\d+)\s*$", re.MULTILINE)
# Without the code span by earlier versions.
_POD_LINE = re.compile(r"^Kubernetes pod (?:`([^`\n]+)`|(\S+))(?: of [\w-]+)?\s*$", re.MULTILINE)

_TEXT_MAX = 300
"""Characters of one text of a request; a Kubernetes name has 253."""


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
    sandbox: Sandbox, installation: str, node: str, containers: Sequence[Container] = (), now: int = 0
) -> str:
    """The notes. `containers` are shown with their states at `now`, nanoseconds since the epoch.

    As long as Proxmox allows; what does not fit of the containers is left out.
    """
    metadata = sandbox.config.metadata
    front = sandbox.front
    podless = front is not None and front.kind.is_podless
    what = f"Container {_code(metadata.name)}"
    if not podless:
        what = f"Kubernetes pod {_code(f'{metadata.namespace}/{metadata.name}')}"
    paragraphs = [
        f"**managed by pvecri: use {'the client that created it' if podless else 'kubectl'}**",
        f"{what}{'' if front is None else f' of {front.kind.value}'}",
        f"node: {_code(node)}",
        f"uid: {_code(metadata.uid)}",
        f"attempt: {metadata.attempt}",
        f"created: {_time(sandbox.created_at)}, by pvecri for {'the CRI' if front is None else front.kind.value}",
        f"user namespace: {_USER_NAMESPACES[sandbox.user_namespace.kind]}; {_code(sandbox.user_namespace.detail)}",
        # A copy of the CT has another VMID than its notes.
        f"CT: {sandbox.vmid}",
        f"sandbox: {sandbox.id}",
        f"installation: {installation}",
    ]
    if front is not None and front.sandbox_id not in ("", sandbox.id):
        paragraphs.append(f"id of {front.kind.value}: {_code(front.sandbox_id)}")
    # Only a blank line ends a paragraph.
    notes = "\n\n".join(paragraphs) + "\n"
    if containers:
        heading = f"\ncontainers at {_time(now)}:\n\n"
        notes += heading + _items(containers, DESCRIPTION_MAX - len((notes + heading).encode()))
    return notes


def describe_warm(sandbox: Sandbox, installation: str, node: str) -> str:
    """The notes of a CT that waits for a pod, whose id will be that of `sandbox`."""
    paragraphs = [
        "**Waiting for a pod: managed by pvecri** (proxmox.warm_pods)",
        f"node: {_code(node)}",
        f"CT: {sandbox.vmid}",
        f"sandbox: {sandbox.id}",
        f"installation: {installation}",
    ]
    return "\n\n".join(paragraphs) + "\n"


def fingerprint(sandbox: Sandbox, installation: str, node: str, containers: Sequence[Container]) -> str:
    """Identifies the notes whenever they were made."""
    return hashlib.sha256(describe(sandbox, installation, node, containers).encode()).hexdigest()[:16]


def _items(containers: Sequence[Container], limit: int) -> str:
    """The containers as a list of at most `limit` bytes."""
    lines = [
        f"- {_code(each.config.metadata.name)} {_state(each)}: {_code(each.image_name)}\n" for each in containers
    ]
    shown = ""
    for number, line in enumerate(lines):
        more = f"- and {len(lines) - number} more\n"
        reserved = 0 if number + 1 == len(lines) else len(more)
        if len((shown + line).encode()) + reserved > limit:
            return shown + more
        shown += line
    return shown


def _state(container: Container) -> str:
    if container.state is ContainerState.EXITED:
        return f"exited with {container.exit_code}"
    return str(container.state.value)


def _code(text: str) -> str:
    """Text as a code span, on one line; a code span has no escape for its own delimiter."""
    line = escaped(" ".join(text.split())).replace("`", "'")
    return f"`{line[:_TEXT_MAX] or '-'}`"


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def owner(notes: str) -> Owner:
    """The owner that the notes name."""

    def value(line: re.Pattern[str]) -> str:
        found = line.search(notes)
        return str(next(filter(None, found.groups()), "")) if found else ""

    return Owner(
        sandbox=value(_SANDBOX_LINE),
        installation=value(_INSTALLATION_LINE),
        pod=value(_POD_LINE),
        vmid=int(value(_CT_LINE) or 0),
    )
