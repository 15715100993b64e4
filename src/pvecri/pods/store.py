# SPDX-License-Identifier: Apache-2.0
"""Persistent state of sandboxes and containers, in SQLite.

One row an object: its value as JSON, and the columns that must be unique. A row is written before what it
describes is created (a sandbox is stored as CREATING before its CT is), so after a crash the rows name all that
may exist. The database is in WAL mode and syncs at checkpoints: a crash of the daemon loses nothing; a crash of
the node can lose the last rows, but none that `sync` was called for, as it is before a CT is created.

Calls are synchronous: each writes one small row into a local file, some tens of microseconds. Writes raise
StoreUnavailable if the file cannot be written: the disk is full, fails or is read-only, or another program has
locked the database.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pvecri import database
from pvecri.errors import AlreadyExists, InternalError, Unavailable
from pvecri.model import Container, ContainerId, Sandbox, SandboxId

SCHEMA_VERSION = 1
# STRICT (SQLite 3.37, Debian 12 has 3.40): SQLite would otherwise store any type in any column.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, vmid INTEGER UNIQUE, value BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS containers (
    id TEXT PRIMARY KEY, sandbox TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    name TEXT NOT NULL, value BLOB NOT NULL, UNIQUE (sandbox, name)
) STRICT;
CREATE TABLE IF NOT EXISTS installation (id TEXT NOT NULL) STRICT;
"""


LOCK_TIMEOUT_MS = 100
"""Milliseconds to wait for another program's lock: the event loop stands still meanwhile."""


class StoreUnavailable(Unavailable):
    """The database cannot be written now."""


@dataclass(frozen=True)
class Recorded:
    """The id of an installation, empty if there is none, and the names of its pods by VMID.

    `removed` are the VMIDs of those that are removed, except for their CTs.
    """

    installation: str
    pods: dict[int, str]
    removed: frozenset[int] = frozenset()


def recorded(path: Path) -> Recorded:
    """Read a database that a daemon may have open, without changing it; empty if there is none. InternalError."""
    if not path.exists():
        return Recorded("", {})
    with _opened_to_read(path) as db:
        row = db.execute("SELECT id FROM installation").fetchone()
        pods = db.execute("SELECT vmid, name FROM sandboxes WHERE vmid IS NOT NULL").fetchall()
        # A damaged row is a pod's, too. The JSON is a BLOB, which SQLite would take for a format of its own.
        text = "CAST(value AS TEXT)"
        is_removed = f"CASE WHEN json_valid({text}) THEN json_extract({text}, '$.removed') END"
        removed = db.execute(f"SELECT vmid FROM sandboxes WHERE vmid IS NOT NULL AND {is_removed}").fetchall()
    return Recorded(str(row[0]) if row else "", dict(pods), frozenset(vmid for (vmid,) in removed))


def recorded_vmids(path: Path) -> dict[str, int]:
    """The VMID of each sandbox with a CT, by id; as `recorded`."""
    if not path.exists():
        return {}
    with _opened_to_read(path) as db:
        return dict(db.execute("SELECT id, vmid FROM sandboxes WHERE vmid IS NOT NULL").fetchall())


@contextmanager
def _opened_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A database that a daemon may have open; InternalError, also for what fails in the context."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            yield db
    except sqlite3.DatabaseError as error:
        raise InternalError(f"{path}: {error}") from error


def claim_name(installation: str) -> str:
    """The name that the daemon of an installation claims while it runs (linux/single_instance.py)."""
    return f"pvecri-{installation}"


class Store:
    """One open database. VMIDs are unique, and so are the names of sandboxes that are not `removed`."""

    def __init__(self, path: Path) -> None:
        """Open or create the database; InternalError if a newer pvecri wrote it or it is no database."""
        self._path = path
        self._closed = False
        self._db = database.connect(path, _SCHEMA, SCHEMA_VERSION)
        self._db.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")

    def installation_id(self) -> str:
        """Random id of this installation, in the notes of its CTs."""
        row = self._db.execute("SELECT id FROM installation").fetchone()
        if row is None:
            row = (os.urandom(8).hex(),)
            self._db.execute("INSERT INTO installation VALUES (?)", row)
        return str(row[0])

    async def sync(self) -> None:
        """Wait until all that was written survives a crash of the node, too. Some milliseconds, in a thread."""
        # SQLite syncs the file at checkpoints only. No descriptor of the database itself may be closed: that would
        # drop SQLite's locks on it (fcntl(2)); it has none on this file.
        await asyncio.to_thread(_sync, self._path.with_name(f"{self._path.name}-wal"))

    def save_sandbox(self, sandbox: Sandbox) -> None:
        """Insert or replace; AlreadyExists if another sandbox has the name or the VMID."""
        # NULL, not 0: UNIQUE allows any number of NULLs.
        name = f"{sandbox.name} {sandbox.id}" if sandbox.removed else sandbox.name
        row = (sandbox.id, name, sandbox.vmid or None, msgspec.json.encode(sandbox))
        try:
            # Not REPLACE: it deletes the old row, and by ON DELETE CASCADE the containers of the pod with it.
            self._write(
                "INSERT INTO sandboxes VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) "
                "DO UPDATE SET name = excluded.name, vmid = excluded.vmid, value = excluded.value",
                row,
            )
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(f"pod sandbox {sandbox.name} (CT {sandbox.vmid}): {error}") from error

    def save_container(self, container: Container) -> None:
        """Insert or replace; AlreadyExists if the sandbox has another container of that name."""
        row = (container.id, container.sandbox_id, container.name, msgspec.json.encode(container))
        try:
            self._write(
                "INSERT INTO containers VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET value = excluded.value",
                row,
            )
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(
                f"container {container.name} of sandbox {container.sandbox_id}: {error}"
            ) from error

    def delete_sandbox(self, sandbox: SandboxId) -> None:
        """Forget a sandbox and its containers. Idempotent."""
        self._write("DELETE FROM sandboxes WHERE id = ?", (sandbox,))

    def delete_container(self, container: ContainerId) -> None:
        """Forget a container. Idempotent."""
        self._write("DELETE FROM containers WHERE id = ?", (container,))

    def _write(self, statement: str, row: tuple[object, ...]) -> None:
        """IntegrityError as it comes, StoreUnavailable for all else that the file is the cause of."""
        if self._closed:
            raise StoreUnavailable(f"{self._path} is closed: the daemon is ending")
        try:
            self._db.execute(statement, row)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"{self._path} cannot be written: {error} (runtime.state_dir)") from error

    def sandboxes(self) -> list[Sandbox]:
        """All, in no order."""
        rows = self._db.execute("SELECT value FROM sandboxes")
        return [msgspec.json.decode(value, type=Sandbox) for (value,) in rows]

    def containers(self) -> list[Container]:
        """All, in no order."""
        rows = self._db.execute("SELECT value FROM containers")
        return [msgspec.json.decode(value, type=Container) for (value,) in rows]

    def close(self) -> None:
        """Close the database. Writes of calls that are still being undone raise StoreUnavailable."""
        self._closed = True
        self._db.close()


def _sync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # closed, and checkpointed with a sync by that
        return
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be written: {error.strerror} (runtime.state_dir)") from error
    finally:
        os.close(fd)
