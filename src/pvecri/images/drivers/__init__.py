# SPDX-License-Identifier: Apache-2.0
"""The rootfs drivers by the names that images.driver gives them."""

from __future__ import annotations

from pathlib import Path

from pvecri.config import ConfigError, ImagesConfig
from pvecri.images.drivers.base import RootfsDriver
from pvecri.images.drivers.btrfs import BtrfsDriver
from pvecri.images.drivers.overlay import OverlayDriver
from pvecri.images.drivers.raw import RawDriver
from pvecri.images.drivers.zfs import ZfsDriver


def make_driver(config: ImagesConfig, root: Path) -> RootfsDriver:
    """The driver that the configuration names, keeping its things below `root`.

    Raises ConfigError when there is none, or one that cannot do what the configuration asks for.
    """
    name, limit = config.driver, config.writable_layer_size
    match name:
        case "overlay":
            if limit:
                raise ConfigError(
                    "images.writable_layer_size: the driver overlay cannot limit; raw, btrfs and zfs can"
                )
            return OverlayDriver(root / name)
        case "raw":
            return RawDriver(root / name, limit=limit)
        case "btrfs":
            return BtrfsDriver(root / name, limit=limit)
        case "zfs":
            if not config.dataset:
                raise ConfigError("images.dataset: the driver zfs needs one, such as 'rpool/pvecri'")
            return ZfsDriver(root / name, config.dataset, limit=limit)
    raise ConfigError(f"images.driver: there is no driver {name!r}; there are overlay, raw, btrfs and zfs")
