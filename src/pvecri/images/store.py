# SPDX-License-Identifier: Apache-2.0
"""The Image Manager's records on disk: images, layers, containers' root filesystems, templates; in SQLite.

A power cut may lose the last commits. What is lost is found again: directories without a record are removed at the
next start. Layers carry the boot ID of the kernel that wrote them until they are synced to the disk, and one from
another boot is not trusted. All methods may be called from any thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pvecri import database
from pvecri.errors import Unavailable
from pvecri.images.drivers.base import LayerKey
from pvecri.images.manifest import Layer
from pvecri.model import ContainerId, Image, ImageId, Value

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS layers (id TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rootfs (id TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS templates (id TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
SCHEMA_VERSION: Final = 1
_Record = TypeVar("_Record", bound=Value)


class ImageRecord(Value, frozen=True):
    """An image and its layers, lowest first.

    `manifests` are digests of manifests that are known to be this image's, an index's among them; `parents` is the
    key of its parents layer (images/drivers/parents.py), empty if it needs none; `variants` are the keys of layers
    that it has instead of others, by number (images/pull/variants.py).
    """

    image: Image
    layers: tuple[Layer, ...]
    parents: LayerKey = LayerKey("")
    manifests: tuple[str, ...] = ()
    variants: dict[int, LayerKey] = msgspec.field(default_factory=dict)


class LayerRecord(Value, frozen=True):
    """An extracted layer. `blobs` are the digests of the blobs that have been verified to contain it.

    `bytes` and `inodes` are its disk usage, `implicit` the directories that its archive left out, `high_ids` the
    owners of its files above 65535; `boot` is empty once the layer is synced to the disk. A file of an artifact
    has no diff ID, a parents layer neither diff ID nor blobs.
    """

    key: LayerKey
    diff_id: str
    blobs: tuple[str, ...]
    bytes: int
    inodes: int
    implicit: tuple[str, ...] = ()
    high_ids: tuple[int, ...] = ()
    boot: str = ""


class RootfsRecord(Value, frozen=True):
    """A container's root filesystem, which keeps its layers alive."""

    container: ContainerId
    image: ImageId
    layers: tuple[LayerKey, ...]


class TemplateRecord(Value, frozen=True):
    """A CT template of the tag `reference` with this manifest; Proxmox may not have finished its pull."""

    file: str
    storage: str
    reference: str
    manifest: str


class StoreUnavailable(Unavailable):
    """The database cannot be written now: the disk is full, fails or is read-only, or the database is locked."""


class Store:
    """The database file at `path`. Methods that write raise StoreUnavailable."""

    def __init__(self, path: Path) -> None:
        """Open or make it; InternalError if a newer pvecri wrote it, or if it is not a database."""
        # A connection has one transaction at a time, whichever thread uses it.
        self._lock = threading.Lock()
        self._path = path
        self._database = database.connect(path, _SCHEMA, SCHEMA_VERSION)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def images(self) -> list[ImageRecord]:
        return self._all("images", ImageRecord)

    def layers(self) -> list[LayerRecord]:
        return self._all("layers", LayerRecord)

    def rootfs(self) -> list[RootfsRecord]:
        return self._all("rootfs", RootfsRecord)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._lock, self._database:  # commits, or rolls back on an exception
                self._database.execute("BEGIN")
                yield
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"{self._path} cannot be written: {error} (images.root)") from error

    def put(self, *, images: Iterable[ImageRecord] = (), layers: Iterable[LayerRecord] = ()) -> None:
        """Insert or replace, in one transaction."""
        with self._transaction():
            for record in images:
                self._replace("images", record.image.id, record)
            for layer in layers:
                self._replace("layers", layer.key, layer)

    def put_rootfs(self, record: RootfsRecord) -> None:
        with self._transaction():
            self._replace("rootfs", record.container, record)

    def templates(self) -> list[TemplateRecord]:
        return self._all("templates", TemplateRecord)

    def put_template(self, record: TemplateRecord) -> None:
        with self._transaction():
            self._replace("templates", record.file, record)

    def delete_template(self, file: str) -> None:
        self._delete("templates", (file,))

    def delete_images(self, ids: Iterable[ImageId]) -> None:
        self._delete("images", ids)

    def delete_layers(self, keys: Iterable[LayerKey]) -> None:
        self._delete("layers", keys)

    def delete_rootfs(self, containers: Iterable[ContainerId]) -> None:
        self._delete("rootfs", containers)

    def _all(self, table: str, kind: type[_Record]) -> list[_Record]:
        with self._lock:
            rows = self._database.execute(f"SELECT value FROM {table} ORDER BY rowid").fetchall()
        return [msgspec.json.decode(value, type=kind) for (value,) in rows]

    def _replace(self, table: str, key: str, record: Value) -> None:
        value = msgspec.json.encode(record).decode()
        self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, value))

    def _delete(self, table: str, keys: Iterable[str]) -> None:
        with self._transaction():
            self._database.executemany(f"DELETE FROM {table} WHERE id = ?", [(key,) for key in keys])
