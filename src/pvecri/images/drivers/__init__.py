# SPDX-License-Identifier: Apache-2.0
"""The rootfs drivers, by their names in images.driver."""

from __future__ import annotations

from pathlib import Path

from pvecri.config.settings import ConfigError, ImagesConfig
from pvecri.images.drivers.base import RootfsDriver
from pvecri.images.drivers.btrfs import BtrfsDriver
from pvecri.images.drivers.overlay import OverlayDriver
from pvecri.images.drivers.raw import RawDriver
from pvecri.images.drivers.zfs import ZfsDriver


def make_driver(config: ImagesConfig, root: Path) -> RootfsDriver:
    """The configured driver, with its directory below `root`; ConfigError if it cannot do what is configured."""
    name, limit = config.driver, config.writable_layer_size
    match name:
        case "overlay":
            if limit:
                raise ConfigError(
                    "images.writable_layer_size: the driver overlay has no size limits; raw, btrfs and zfs have"
                )
            return OverlayDriver(root / name)
        case "raw":
            return RawDriver(root / name, limit=limit)
        case "btrfs":
            return BtrfsDriver(root / name, limit=limit)
        case "zfs":
            if not config.dataset:
                raise ConfigError("images.dataset: required for the driver zfs, such as 'rpool/pvecri'")
            return ZfsDriver(root / name, config.dataset, limit=limit)
    raise ConfigError(f"images.driver: unknown driver {name!r}; known are overlay, raw, btrfs and zfs")
