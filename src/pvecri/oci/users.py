# SPDX-License-Identifier: Apache-2.0
"""The user of a container's process, from the request, the image and its /etc/passwd and /etc/group."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pvecri.errors import InvalidArgument
from pvecri.linux.openat2 import read_in_root
from pvecri.model import ContainerSecurity, ContainerUser, GroupsPolicy

ID_MAX = (1 << 32) - 2
"""The largest UID and GID: 2^32 - 1 means "unchanged" to setresuid(2)."""

_SECURITY = "config.linux.security_context"
_NUMBER = re.compile(r"0*([0-9]{1,10})")


def numeric_id(text: str) -> int | None:
    """The UID or GID that `text` is, in ASCII digits; None for a name, and for a number above ID_MAX."""
    match = _NUMBER.fullmatch(text)
    number = int(match[1]) if match else None
    return number if number is not None and number <= ID_MAX else None


def resolve(security: ContainerSecurity, image_user: str, rootfs: Path) -> ContainerUser:
    """UID, GID and supplementary groups (CRI LinuxContainerSecurityContext).

    run_as_user, else run_as_username, else the image's `user[:group]`, else root. A name must be in the image's
    /etc/passwd, a number need not; what exceeds ID_MAX is a name, as for CRI-O and containerd. The policy MERGE
    adds the user's groups in /etc/group. InvalidArgument names the field that cannot be resolved.
    """
    if security.run_as_group is not None and security.run_as_user is None and not security.run_as_username:
        raise InvalidArgument(
            f"{_SECURITY}.run_as_group", "is allowed only together with run_as_user or run_as_username"
        )
    wanted, group, field = _wanted(security, image_user)
    entry = _passwd_entry(rootfs, wanted)
    if entry is None:
        number = numeric_id(wanted)
        if number is None:
            raise InvalidArgument(field, f"the image has no user {wanted!r} in /etc/passwd")
        # A UID that passwd does not have gets GID 0, as Kubernetes documents it for an unset runAsGroup.
        entry = ("", number, 0)
    name, uid, gid = entry
    if security.run_as_group is not None:
        gid = security.run_as_group
    elif group:
        gid = _group_id(rootfs, group, field)
    memberships = _memberships(rootfs, name) if security.groups_policy is GroupsPolicy.MERGE else ()
    # The primary group is among them: else a process could drop a group to which a file denies access
    # (CVE-2022-2995, in CRI-O, and CVE-2023-25173, in containerd).
    groups = dict.fromkeys((gid, *security.supplemental_groups, *memberships))
    return ContainerUser(uid, gid, tuple(groups))


def _wanted(security: ContainerSecurity, image_user: str) -> tuple[str, str, str]:
    """(user, group, the field they come from); the group is empty unless the image names one."""
    if security.run_as_user is not None:
        return str(security.run_as_user), "", f"{_SECURITY}.run_as_user"
    if security.run_as_username:
        return security.run_as_username, "", f"{_SECURITY}.run_as_username"
    user, group, *_ = (*image_user.split(":"), "")  # Docker ignores what follows a second colon
    return user or "0", group, "the image's user"


def _lines(rootfs: Path, path: str, fields: int) -> Iterator[list[str]]:
    for line in read_in_root(rootfs, path).splitlines():
        parts = line.split(":")
        if len(parts) >= fields and not line.startswith("#"):  # an image's files may be malformed: skip
            yield parts


def _passwd_entry(rootfs: Path, wanted: str) -> tuple[str, int, int] | None:
    """(name, uid, gid) of the first passwd entry with that name or UID."""
    for name, _, uid, gid, *_ in _lines(rootfs, "/etc/passwd", 4):
        ids = numeric_id(uid), numeric_id(gid)
        if wanted in (name, uid) and ids[0] is not None and ids[1] is not None:
            return name, ids[0], ids[1]
    return None


def _group_id(rootfs: Path, wanted: str, field: str) -> int:
    for name, _, gid, *_ in _lines(rootfs, "/etc/group", 3):
        number = numeric_id(gid)
        if wanted in (name, gid) and number is not None:
            return number
    number = numeric_id(wanted)
    if number is not None:
        return number
    raise InvalidArgument(field, f"the image has no group {wanted!r} in /etc/group")


def _memberships(rootfs: Path, user: str) -> tuple[int, ...]:
    if not user:
        return ()
    return tuple(
        number
        for _, _, gid, members, *_ in _lines(rootfs, "/etc/group", 4)
        if user in members.split(",") and (number := numeric_id(gid)) is not None
    )
