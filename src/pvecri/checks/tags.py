# SPDX-License-Identifier: Apache-2.0
"""Tags of pods' CTs: the datacenter's options may reserve tags for accounts with Sys.Modify on `/`.

Proxmox compares each tag that a request adds or removes with the options `registered-tags` and `user-tag-access`
(datacenter.cfg(5)). A refused tag fails in the background, and its pod runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from msgspec.structs import replace

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config
from pvecri.proxmox.answers import DatacenterOptions, TagAccess
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import ct_tag

SUBJECT = "proxmox"

FILE = Path("/etc/pve/datacenter.cfg")
"""GET /cluster/options shows these options only with Sys.Audit on `/`, which pods do not need."""

REMEDY = (
    "allow the tag in the datacenter's options, let `pvecri setup` grant Sys.Modify on /, or change {setting}; "
    "docs/proxmox-setup.md"
)


async def check(config: Config, proxmox: ProxmoxApi, file: Path = FILE) -> AsyncIterator[Finding]:
    """Whether the account may set the configured tags. PvecriError if Proxmox does not answer."""
    wanted = config.proxmox
    if not (wanted.tags or wanted.namespace_tags) or "Sys.Modify" in await proxmox.permissions("/"):
        return
    options = await proxmox.datacenter_options()
    if options.tag_access is None and not options.registered_tags:
        options = with_file(options, file)
    for tag in map(ct_tag, wanted.tags):
        if reason := refusal(tag, options):
            yield _finding("proxmox.tags", tag, reason)
    access = options.tag_access
    if wanted.namespace_tags and access and not access.free:
        yield _finding("proxmox.namespace_tags", "ns-NAMESPACE", f"user-tag-access has user-allow={access.allow}")


def refusal(tag: str, options: DatacenterOptions) -> str:
    """Why an account without Sys.Modify on `/` may not set a tag; empty if it may. Pure."""
    if tag in options.registered_tags:
        return "it is in registered-tags"
    if tag in options.allowed_tags or options.tag_access is None or options.tag_access.free:
        return ""
    return f"user-tag-access has user-allow={options.tag_access.allow}"


def with_file(options: DatacenterOptions, file: Path) -> DatacenterOptions:
    """The options with what datacenter.cfg restricts; as they are if it cannot be read."""
    try:
        lines = dict(_options(file.read_text()))
    except OSError:
        return options
    access = dict(part.partition("=")[::2] for part in lines.get("user-tag-access", "").split(","))
    registered = tuple(filter(None, lines.get("registered-tags", "").split(";")))
    return replace(
        options, tag_access=TagAccess(allow=access.get("user-allow", "free")), registered_tags=registered
    )


def _options(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not name.startswith("#"):
            yield name.strip(), value.strip()


def _finding(setting: str, tag: str, reason: str) -> Finding:
    message = (
        f"{setting}: Proxmox will refuse the tag {tag} of CTs: {reason}, and the account lacks Sys.Modify on /"
    )
    return Finding("warning", SUBJECT, message, REMEDY.format(setting=setting))
