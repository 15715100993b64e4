# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from support.plans import OLD_RUNC

from pvecri.errors import FailedPrecondition
from pvecri.oci.features import RuntimeBinary
from pvecri.pods.container import kernel_directories

CRUN = RuntimeBinary("/usr/bin/crun", "crun", (1, 14))


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("target", ["/elsewhere", "../../elsewhere", "elsewhere", "/"])
def test_symlink_is_refused_by_its_path_unless_the_runtime_stays_inside(
    tmp_path: Path, name: str, target: str
) -> None:
    (tmp_path / name).symlink_to(target)
    with pytest.raises(FailedPrecondition, match=f"image web:1: its /{name} is a symlink to '{target}'"):
        kernel_directories.check(tmp_path, "web:1", OLD_RUNC)
    kernel_directories.check(tmp_path, "web:1", CRUN)


def test_directories_missing_ones_and_links_elsewhere_are_accepted(tmp_path: Path) -> None:
    kernel_directories.check(tmp_path, "web:1", OLD_RUNC)
    for name in ("dev", "proc", "sys", "usr"):
        (tmp_path / name).mkdir()
    (tmp_path / "lib").symlink_to("usr/lib")
    kernel_directories.check(tmp_path, "web:1", OLD_RUNC)
