# SPDX-License-Identifier: AGPL-3.0-or-later
"""CTs from OCI image archives, by the steps of Proxmox: the layers flattened, the image's config made the CT's."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvecri_embedded.storage.rootfs import inside, write_entry

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_ARCHITECTURES = {"amd64": "amd64", "arm64": "arm64"}
_UNQUOTED = re.compile(r"[\w!%+,\-./:=@^]+")


def is_archive(tar: tarfile.TarFile) -> bool:
    """True if the tar archive holds an OCI image layout."""
    return any(posixpath.normpath(name) == "oci-layout" for name in tar.getnames())


class Image:
    """An image in an OCI archive."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {posixpath.normpath(member.name): member for member in tar}
        self._manifest = self._find_manifest()
        self._config = self._json(self._manifest["config"])

    def unpack(self, root: Path, id_shift: int) -> int:
        """Apply the layers to the directory ``root``, then make the image's volumes; returns the files' bytes."""
        size = 0
        for layer in self._manifest["layers"]:
            blob = self._tar.extractfile(self._blob(layer))
            assert blob is not None
            with tarfile.open(fileobj=blob) as tar:
                size += sum(_apply(tar, member, root, id_shift) for member in tar)
        for volume in self._runtime().get("Volumes") or {}:
            entry = tarfile.TarInfo(volume.strip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            if not (root / entry.name).exists():
                write_entry(entry, None, root, id_shift)
        return size

    def options(self, root: Path) -> dict[str, Any]:
        """What the image says of the CT's config. ``root`` is where it was unpacked."""
        runtime = self._runtime()
        command = [*(runtime.get("Entrypoint") or []), *(runtime.get("Cmd") or [])]
        options: dict[str, Any] = {"cmode": "console", "lxc": self._raw_keys(runtime, root)}
        options["arch"] = _ARCHITECTURES.get(self._config.get("architecture", ""), "amd64")
        if command:
            options["entrypoint"] = " ".join(map(quote, command))
        if runtime.get("Env"):
            options["env"] = "\0".join(runtime["Env"])
        return options

    @staticmethod
    def _raw_keys(runtime: Mapping[str, Any], root: Path) -> list[list[str]]:
        keys: list[list[str]] = []
        if runtime.get("User"):
            uid, gid = _resolve_user(str(runtime["User"]), root)
            keys += [["lxc.init.uid", uid], ["lxc.init.gid", gid]]
        if runtime.get("WorkingDir"):
            keys.append(["lxc.init.cwd", runtime["WorkingDir"]])
        keys.append(["lxc.signal.halt", runtime.get("StopSignal") or "SIGTERM"])
        return keys

    def _runtime(self) -> dict[str, Any]:
        return self._config.get("config") or {}

    def _find_manifest(self) -> dict[str, Any]:
        document = json.loads(self._read("index.json"))
        # index.json may name another index in place of a manifest.
        while "manifests" in document:
            document = self._json(document["manifests"][0])
        return dict(document)

    def _json(self, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        return dict(json.loads(self._read(self._blob(descriptor).name)))

    def _read(self, name: str) -> bytes:
        stream = self._tar.extractfile(self._members[posixpath.normpath(name)])
        assert stream is not None
        return stream.read()

    def _blob(self, descriptor: Mapping[str, Any]) -> tarfile.TarInfo:
        return self._members["blobs/" + descriptor["digest"].replace(":", "/")]


def quote(argument: str) -> str:
    """An argument as Proxmox quotes it (String::ShellQuote)."""
    return argument if _UNQUOTED.fullmatch(argument) else shlex.quote(argument).replace("'\"'\"'", "'\\''")


def _apply(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, id_shift: int) -> int:
    """One entry of a layer: a whiteout, or a file that may replace one of a lower layer."""
    directory, name = posixpath.split(posixpath.normpath(member.name))
    if name == _OPAQUE:
        for child in list(inside(root, directory).iterdir()):
            _remove(child)
        return 0
    if name.startswith(_WHITEOUT):
        _remove(inside(root, directory) / name.removeprefix(_WHITEOUT))
        return 0
    target = inside(root, directory) / name
    if target.is_symlink() or (target.exists() and not (target.is_dir() and member.isdir())):
        _remove(target)
    return write_entry(member, tar.extractfile(member) if member.isreg() else None, root, id_shift)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _resolve_user(user: str, root: Path) -> tuple[str, str]:
    """``USER[:GROUP]`` as numbers, by the image's own passwd and group files.

    A number that passwd does not know has the group of the same number.
    """
    name, _, group = user.partition(":")
    known = {key: (fields[2], fields[3]) for key, fields in _database(root, "etc/passwd").items()}
    if name not in known and not name.isdigit():
        raise KeyError(f"user '{name}' is not in the image's passwd")
    by_number = {uid: (uid, gid) for uid, gid in known.values()}
    uid, gid = known.get(name) or by_number.get(name) or (name, name)
    if group:
        gid = _database(root, "etc/group").get(group, [group, "", group])[2]
    return uid, gid


def _database(root: Path, name: str) -> dict[str, list[str]]:
    """A passwd or group file by name."""
    try:
        lines = inside(root, name).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {fields[0]: fields for line in lines if len(fields := line.split(":")) > 3}
