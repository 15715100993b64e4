# SPDX-License-Identifier: Apache-2.0
"""What setups made on this node, so that it can be undone: /var/lib/pvecri/setup.json."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from pvecri.errors import InternalError
from pvecri.linux.files import write_atomically
from pvecri.setup.steps import SYSCTL, Step

PATH = Path("/var/lib/pvecri/setup.json")


class Made(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object that a setup made. `sha256` is that of the file's content at `path`; see Step for the others."""

    name: str
    undo: tuple[str, ...] = ()
    shared: bool = False
    path: str = ""
    sha256: str = ""


class Record:
    """The record's file below `root`. Each change is on disk when the method returns."""

    def __init__(self, root: Path) -> None:
        """Read the record; an empty one if there is none. InternalError if it is damaged."""
        self._root = root
        self._path = under(root, PATH)
        try:
            self.made = msgspec.json.decode(self._path.read_bytes(), type=list[Made])
        except FileNotFoundError:
            self.made = []
        except msgspec.DecodeError as error:
            raise InternalError(f"{self._path}: {error}") from error

    def add(self, step: Step) -> None:
        """Note that the step was done. What was made again is undone to what was before the first time."""
        path = str(step.path or "")
        digest = sha256(under(self._root, step.path)) if step.path else ""
        key = _object(step.name)
        earlier = next((each for each in self.made if _object(each.name) == key), None)
        made = Made(step.name, earlier.undo if earlier else step.undo, step.shared, path, digest)
        self._save([*(each for each in self.made if each is not earlier), made])

    def unchanged(self, path: Path) -> bool:
        """Whether a setup wrote the file at `path`, and it has the same content still."""
        digest = sha256(under(self._root, path))
        return any(each.path == str(path) and each.sha256 == digest for each in self.made)

    def remove(self, made: Made) -> None:
        """Note that one was undone; the last one removes the file."""
        self._save([each for each in self.made if each != made])

    def _save(self, made: list[Made]) -> None:
        self.made = made
        if made:
            self._path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(made)) + b"\n")
        else:
            self._path.unlink(missing_ok=True)


def _object(name: str) -> str:
    """The name of a step without the value of a sysctl."""
    return name.partition("=")[0] if name.startswith(SYSCTL) else name


def under(root: Path, path: Path) -> Path:
    """An absolute path below another root directory."""
    return root / path.relative_to("/")


def sha256(path: Path) -> str:
    """The hash of a file's content; empty if there is no file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
