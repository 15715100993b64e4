# SPDX-License-Identifier: Apache-2.0
"""The directories of an image where the OCI runtime mounts kernel filesystems, and must find no symlink.

With a symlink at /dev, runc replaces `ptmx`, `fd`, `stdin`, … in the directory of the node that the link names. At
/proc or /sys, runc before 1.1.5 mounted there (CVE-2019-19921, CVE-2023-27561), and later ones refuse to.
"""

from __future__ import annotations

from pathlib import Path

from pvecri.errors import FailedPrecondition
from pvecri.oci.features import RuntimeBinary

DIRECTORIES = ("/dev", "/proc", "/sys")


def check(rootfs: Path, image_reference: str, runtime: RuntimeBinary) -> None:
    """FailedPrecondition if `runtime` would follow a symlink of the image to the node. Blocks."""
    if not runtime.follows_symlinked_dev:
        return
    for directory in DIRECTORIES:
        place = rootfs / directory.lstrip("/")
        if place.is_symlink():
            raise FailedPrecondition(
                f"image {image_reference}: its {directory} is a symlink to {str(place.readlink())!r}, which "
                f"{runtime.kind} would follow to the node's files; {directory} must be a directory"
            )
