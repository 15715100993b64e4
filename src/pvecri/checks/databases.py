# SPDX-License-Identifier: Apache-2.0
"""The databases of pods and images: a newer pvecri's or a damaged one keeps the daemon from starting."""

from __future__ import annotations

from collections.abc import Iterator

from pvecri import database
from pvecri.checks.finding import Finding
from pvecri.config.settings import Config
from pvecri.errors import InternalError
from pvecri.images import store as images
from pvecri.pods import store as pods

SUBJECT = "databases"
REMEDY = "install the version that wrote it, or see docs/operations/upgrade.md"


def required(config: Config) -> Iterator[Finding]:
    """Both, if they exist. That of an image store on a Proxmox storage (`images.storage`) is not looked for."""
    for path, version in (
        (config.runtime.state_dir / "pods.db", pods.SCHEMA_VERSION),
        (config.images_root / "images.db", images.SCHEMA_VERSION),
    ):
        try:
            database.verify(path, version)
        except InternalError as error:
            yield Finding("problem", SUBJECT, str(error), REMEDY)
