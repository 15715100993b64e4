# SPDX-License-Identifier: Apache-2.0
"""The rootfs drivers by the names that images.driver gives them."""

from __future__ import annotations

from pathlib import Path

from pvecri.config import ConfigError
from pvecri.images.drivers.base import RootfsDriver
from pvecri.images.drivers.overlay import OverlayDriver


def make_driver(name: str, root: Path) -> RootfsDriver:
    """The driver `name`, keeping its things below `root`; ConfigError when there is none."""
    if name != "overlay":
        raise ConfigError(f"images.driver: there is no driver {name!r}; there is overlay")
    return OverlayDriver(root / name)
