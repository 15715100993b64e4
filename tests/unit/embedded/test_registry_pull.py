# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import pytest

from pvecri_embedded.api.registry_pull import file_name


@pytest.mark.parametrize(
    ("reference", "wanted", "name"),
    [
        ("127.0.0.1:5000/rig/app:1.0", None, "app_1.0.tar"),
        ("docker.io/library/busybox:latest", None, "busybox_latest.tar"),
        ("busybox:1", None, "busybox_1.tar"),
        ("busybox:1", "custom-name2", "custom-name2.tar"),
        ("busybox:1", "../../etc/a b", "a_b.tar"),
    ],
)
def test_template_name_defaults_to_repository_and_tag(reference: str, wanted: str | None, name: str) -> None:
    assert file_name(reference, wanted) == name
