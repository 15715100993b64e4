# SPDX-License-Identifier: Apache-2.0
"""Opening the SQLite databases below `runtime.state_dir`: one set of pragmas, one check of the version."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pvecri.errors import InternalError


def connect(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """Open the database at `path`, mode 0600, or make it with `schema`, statements that may be repeated.

    In autocommit mode, for any thread. A database of this version is opened without a write. InternalError, the
    file unchanged, if a newer pvecri wrote it or if it is no database.
    """
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)  # containers' environments may contain secrets
        found = _version(database, path, version)
        # A commit costs no fsync: a crash of the node may lose the last ones, but never leaves half of one.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        database.executescript(schema)
        # Last: if this is cut off, the next start runs the schema again. Not written again: a disk may be full.
        if found != version:
            database.execute(f"PRAGMA user_version = {version}")
    except BaseException as error:
        database.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise InternalError(f"{path}: {error}") from error
        raise
    return database


def verify(path: Path, version: int) -> None:
    """InternalError if `connect` would refuse the database, which a daemon may have open; changes nothing.

    A database that does not exist is none to refuse.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            _version(database, path, version)
    except sqlite3.DatabaseError as error:
        raise InternalError(f"{path}: {error}") from error


def _version(database: sqlite3.Connection, path: Path, version: int) -> int:
    """The schema's version in the file, at most `version`; else InternalError."""
    found: int = database.execute("PRAGMA user_version").fetchone()[0]
    if found > version:
        raise InternalError(f"{path}: written by a newer pvecri (schema {found}, this one has {version})")
    return found
