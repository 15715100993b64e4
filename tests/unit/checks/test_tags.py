# SPDX-License-Identifier: Apache-2.0
"""What datacenter.cfg restricts is read where the API does not show it, and nothing is claimed without it."""

from __future__ import annotations

from pathlib import Path

from pvecri.checks.tags import refusal, with_file
from pvecri.proxmox.answers import DatacenterOptions, TagAccess

FREE = """\
#user-tag-access: user-allow=none
keyboard: en-us
tag-style: case-sensitive=1
"""


def test_tags_are_free_unless_an_option_restricts_them(tmp_path: Path) -> None:
    file = tmp_path / "datacenter.cfg"
    file.write_text(FREE)
    assert refusal("pvecri", with_file(DatacenterOptions(), file)) == ""
    file.write_text(f"{FREE}user-tag-access: user-allow-list=a;b\nregistered-tags: pvecri\n")
    assert "registered-tags" in refusal("pvecri", with_file(DatacenterOptions(), file))
    assert refusal("other", with_file(DatacenterOptions(), file)) == ""


def test_unknown_restrictions_are_no_finding(tmp_path: Path) -> None:
    assert with_file(DatacenterOptions(), tmp_path / "none") == DatacenterOptions()
    assert refusal("pvecri", DatacenterOptions()) == ""


def test_allowed_and_registered_tags() -> None:
    options = DatacenterOptions(allowed_tags=("a",), tag_access=TagAccess(allow="list"), registered_tags=("c",))
    assert refusal("a", options) == ""
    assert "user-allow=list" in refusal("b", options)
    assert "registered-tags" in refusal("c", options)
