# SPDX-License-Identifier: Apache-2.0
"""Resolution of a container's user and groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import ContainerSecurity, ContainerUser, GroupsPolicy
from pvecri.oci.users import ID_MAX, numeric_id, resolve

PASSWD = """\
# a comment
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1001:Alice:/home/alice:/bin/sh
1234:x:77:78::/:/bin/sh
broken:x:notanumber:5::/:/bin/sh
short:x
"""
GROUP = """\
root:x:0:
alice:x:1001:
staff:x:50:bob,alice
wheel:x:10:alice
broken:x:nan:alice
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


def user(uid: int, gid: int, *groups: int) -> ContainerUser:
    return ContainerUser(uid, gid, groups)


@pytest.mark.parametrize(
    ("security", "image_user", "expected"),
    [
        ({}, "", user(0, 0, 0)),
        ({}, "alice", user(1000, 1001, 1001, 50, 10)),
        ({}, "1000", user(1000, 1001, 1001, 50, 10)),
        ({}, "alice:staff", user(1000, 50, 50, 10)),
        ({}, "alice:7", user(1000, 7, 7, 50, 10)),
        ({}, "4242", user(4242, 0, 0)),
        ({}, "4242:staff", user(4242, 50, 50)),
        ({}, ":staff", user(0, 50, 50)),
        ({}, "alice:", user(1000, 1001, 1001, 50, 10)),
        ({}, ":", user(0, 0, 0)),
        ({}, "alice:staff:x", user(1000, 50, 50, 10)),
        ({}, "4242::", user(4242, 0, 0)),
        ({}, "0004242", user(4242, 0, 0)),
        ({}, "2147483647", user(2147483647, 0, 0)),
        ({"run_as_user": 1000}, "root", user(1000, 1001, 1001, 50, 10)),
        ({"run_as_user": 0}, "alice", user(0, 0, 0)),
        ({"run_as_user": 4242}, "alice:staff", user(4242, 0, 0)),
        ({"run_as_user": 1000, "run_as_group": 7}, "", user(1000, 7, 7, 50, 10)),
        ({"run_as_username": "alice"}, "root", user(1000, 1001, 1001, 50, 10)),
        ({"run_as_username": "alice", "run_as_group": 0}, "", user(1000, 0, 0, 50, 10)),
        ({"run_as_username": "1234"}, "", user(77, 78, 78)),
        ({"run_as_user": 1000, "supplemental_groups": (50, 90)}, "", user(1000, 1001, 1001, 50, 90, 10)),
        (
            {"run_as_user": 1000, "supplemental_groups": (90,), "groups_policy": GroupsPolicy.STRICT},
            "",
            user(1000, 1001, 1001, 90),
        ),
    ],
)
def test_user_of_the_request_overrides_the_image(
    rootfs: Path, security: dict[str, Any], image_user: str, expected: ContainerUser
) -> None:
    assert resolve(ContainerSecurity(**security), image_user, rootfs) == expected


@pytest.mark.parametrize(
    ("security", "image_user", "message"),
    [
        ({"run_as_username": "mallory"}, "", r"run_as_username: the image has no user 'mallory'"),
        ({"run_as_username": "broken"}, "", r"run_as_username: the image has no user 'broken'"),
        ({"run_as_group": 7}, "alice", r"run_as_group: is allowed only together with"),
        ({}, "mallory", r"the image's user: the image has no user 'mallory'"),
        *(
            ({}, wrong, r"the image's user: the image has no user")
            for wrong in (" ", "alice ", "-1", "4294967295", "٤٢", "9" * 5000)
        ),
        ({}, "alice:4294967295", r"the image's user: the image has no group"),
        ({}, "alice: staff", r"the image's user: the image has no group"),
        ({}, "alice:nobody", r"the image's user: the image has no group 'nobody'"),
    ],
)
def test_unresolvable_user_is_an_invalid_argument(
    rootfs: Path, security: dict[str, Any], image_user: str, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        resolve(ContainerSecurity(**security), image_user, rootfs)


def test_numeric_user_needs_no_passwd_file(tmp_path: Path) -> None:
    assert resolve(ContainerSecurity(), "7:8", tmp_path) == user(7, 8, 8)
    with pytest.raises(InvalidArgument, match="no user 'alice'"):
        resolve(ContainerSecurity(), "alice", tmp_path)


@pytest.mark.parametrize("relative", [False, True])
def test_symlinked_passwd_is_resolved_inside_the_rootfs(rootfs: Path, relative: bool) -> None:
    """The node's own /etc/passwd must not decide who a container runs as."""
    outside = rootfs.parent / "outside"
    outside.write_text("alice:x:0:0::/:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("../../outside" if relative else outside)
    with pytest.raises(InvalidArgument, match="no user 'alice'"):
        resolve(ContainerSecurity(run_as_username="alice"), "", rootfs)
    inside = rootfs / ("outside" if relative else str(outside).lstrip("/"))
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_text("alice:x:5:6::/:/bin/sh\n")
    assert resolve(ContainerSecurity(run_as_username="alice"), "", rootfs).uid == 5


def test_passwd_that_is_not_a_regular_file_is_ignored(rootfs: Path, tmp_path: Path) -> None:

    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    assert resolve(ContainerSecurity(run_as_user=5), "", rootfs).uid == 5
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").mkdir()
    assert resolve(ContainerSecurity(run_as_user=5), "", rootfs).uid == 5


def test_passwd_with_invalid_utf8_is_parsed(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"\xff\xfe:\0\nalice:x:1000:1001::/:/bin/sh\n")
    assert resolve(ContainerSecurity(run_as_username="alice"), "", rootfs).uid == 1000


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        (str(ID_MAX), ID_MAX),
        (str(ID_MAX + 1), None),
        ("9" * 5000, None),
        ("\N{ARABIC-INDIC DIGIT ONE}", None),
        ("\N{SUPERSCRIPT TWO}", None),
        ("1_000", None),
        ("+1", None),
        ("-1", None),
        ("1\n", None),
        ("", None),
    ],
)
def test_an_id_is_in_ascii_digits_and_fits_the_kernel(text: str, number: int | None) -> None:
    assert numeric_id(text) == number


@pytest.mark.parametrize("name", ["9" * 5000, "\N{ARABIC-INDIC DIGIT ONE}", str(1 << 32)])
def test_number_that_is_no_id_is_a_name_that_the_image_lacks(rootfs: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^config\..*run_as_username: the image has no user"):
        resolve(ContainerSecurity(run_as_username=name), "", rootfs)
    with pytest.raises(InvalidArgument, match=r"^the image's user: the image has no group"):
        resolve(ContainerSecurity(), f"0:{name}", rootfs)


def test_entries_with_numbers_that_are_no_ids_are_skipped(rootfs: Path) -> None:
    huge = "9" * 5000
    (rootfs / "etc/passwd").write_text(f"eve:x:{huge}:0::/:/bin/sh\neve:x:5:6::/:/bin/sh\n")
    (rootfs / "etc/group").write_text(f"a:x:{huge}:eve\nb:x:\N{ARABIC-INDIC DIGIT ONE}:eve\n")
    assert resolve(ContainerSecurity(run_as_username="eve"), "", rootfs) == user(5, 6, 6)
