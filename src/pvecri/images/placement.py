# SPDX-License-Identifier: Apache-2.0
"""Where images live: what images.storage and images.driver come to, given what Proxmox says of a storage."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pvecri.config import Config, ConfigError, ImagesConfig
from pvecri.model import Value

DIRECTORY: Final = "pvecri-images"
"""Below the directory of a storage; Proxmox uses names of its own there and leaves others alone."""
DATASET: Final = "pvecri"
"""Below the pool of a storage. Proxmox takes only `subvol-…` and `vm-…` there for its own."""

_DRIVERS: Final = {"zfspool": "zfs", "btrfs": "btrfs", "dir": "overlay", "lvmthin": "raw", "lvm": "raw"}


class StoragePlace(Value, frozen=True):
    """A storage of Proxmox: its type, and the directory or the ZFS pool that it has, if any."""

    type: str
    path: str = ""
    pool: str = ""


def placed(config: Config, place: StoragePlace | None) -> Config:
    """The configuration with images.root, driver and dataset as they are to be.

    `place` is what images.storage is, None when that is not set. Raises ConfigError for storages that cannot hold
    images. Storages without a directory (LVM) leave images in images.root.
    """
    images = config.images
    if place is None:
        driver = "overlay" if images.driver == "auto" else images.driver
        return _with(config, driver=driver)
    if place.type not in _DRIVERS:
        raise ConfigError(
            f"images.storage: {images.storage} is of type {place.type}, which cannot hold images; "
            f"storages of type {', '.join(_DRIVERS)} can"
        )
    driver = _DRIVERS[place.type] if images.driver == "auto" else images.driver
    dataset = images.dataset or (f"{place.pool}/{DATASET}" if place.pool else "")
    root = Path(place.path) / DIRECTORY if place.path else images.root
    return _with(config, driver=driver, dataset=dataset if driver == "zfs" else "", root=root)


def remembered(config: Config) -> Config:
    """As `placed`, by what the daemon remembers of the storage; ConfigError when it has not asked yet."""
    storage = config.images.storage
    place = memory(config).recall(storage) if storage else None
    if storage and place is None:
        raise ConfigError(
            f"images.storage: what {storage} is has not been asked of Proxmox yet; start the daemon once"
        )
    return placed(config, place)


def memory(config: Config) -> Memory:
    """The daemon's."""
    return Memory(config.runtime.state_dir / "images-storage.json")


class Memory:
    """What a storage was when it was last asked for, in a file: the daemon also starts without Proxmox."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, storage: str) -> StoragePlace | None:
        """What is remembered of this storage."""
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, StoragePlace])
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return known.get(storage)

    def remember(self, storage: str, place: StoragePlace) -> None:
        """Instead of what was remembered before."""
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode({storage: place}))
        new.rename(self._path)


def _with(config: Config, **changes: object) -> Config:
    images: ImagesConfig = msgspec.structs.replace(config.images, **changes)
    return msgspec.structs.replace(config, images=images)
