# SPDX-License-Identifier: Apache-2.0
"""The driver and the directory of images, from images.storage, images.driver and the type of a Proxmox storage."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pvecri.config.settings import Config, ConfigError, ImagesConfig
from pvecri.linux.files import write_atomically
from pvecri.model import Value

DIRECTORY: Final = "pvecri-images"
"""Below the directory of a storage; Proxmox ignores names that are not its own there."""
DATASET: Final = "pvecri"
"""Below the pool of a storage, where Proxmox lists only `subvol-…`, `vm-…` and `base-…`."""

_DRIVERS: Final = {"zfspool": "zfs", "btrfs": "btrfs", "dir": "overlay", "lvmthin": "raw", "lvm": "raw"}


class StoragePlace(Value, frozen=True):
    """A storage of Proxmox: its type, and its directory or ZFS pool, if it has one."""

    type: str
    path: str = ""
    pool: str = ""


def placed(config: Config, place: StoragePlace | None) -> Config:
    """The configuration with images.root, driver and dataset set for a storage.

    `place` is None if images.storage is unset. Raises ConfigError for types that do not support images. With LVM,
    which has no directory, images stay in images.root.
    """
    images = config.images
    if place is None:
        driver = "overlay" if images.driver == "auto" else images.driver
        return _with(config, driver=driver)
    if place.type not in _DRIVERS:
        raise ConfigError(
            f"images.storage: {images.storage} is of type {place.type}, which does not support images; "
            f"supported are {', '.join(_DRIVERS)}"
        )
    driver = _DRIVERS[place.type] if images.driver == "auto" else images.driver
    dataset = images.dataset or (f"{place.pool}/{DATASET}" if place.pool else "")
    root = Path(place.path) / DIRECTORY if place.path else images.root
    return _with(config, driver=driver, dataset=dataset if driver == "zfs" else "", root=root)


def remembered(config: Config) -> Config:
    """As `placed`, by what the daemon has cached of the storage; ConfigError if it has never asked Proxmox."""
    storage = config.images.storage
    place = memory(config).recall(storage) if storage else None
    if storage and place is None:
        raise ConfigError(
            f"images.storage: the type of {storage} is not known yet; start the daemon once with Proxmox reachable"
        )
    return placed(config, place)


def memory(config: Config) -> Memory:
    return Memory(config.runtime.state_dir / "images-storage.json")


class Memory:
    """A cache of images.storage in a file, with which the daemon starts while Proxmox cannot be reached."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, storage: str) -> StoragePlace | None:
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, StoragePlace])
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return known.get(storage)

    def remember(self, storage: str, place: StoragePlace) -> None:
        """Replace the cached storage."""
        write_atomically(self._path, msgspec.json.encode({storage: place}))


def _with(config: Config, **changes: object) -> Config:
    images: ImagesConfig = msgspec.structs.replace(config.images, **changes)
    return msgspec.structs.replace(config, images=images)
