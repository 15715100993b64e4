# SPDX-License-Identifier: AGPL-3.0-or-later
"""OCI image archives for tests."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

SHELL = {"Entrypoint": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"]}
APP = {
    "Entrypoint": ["/bin/app", "--flag", "a b", "it's", 'x"y'],
    "Env": ["PATH=/usr/bin:/bin", "GREETING=hello world", "QUOTE=it's"],
    "User": "1000",
    "WorkingDir": "/tmp/wd",
    "StopSignal": "SIGQUIT",
    "Volumes": {"/data": {}},
}


def write_image(path: Path, config: dict[str, Any], *layers: Path) -> Path:
    """Write an image of these layers (tar archives) as an OCI archive."""
    with tarfile.open(path, "w") as tar:
        described = [_add_blob(tar, layer.read_bytes()) for layer in layers]
        image = {"architecture": "amd64", "os": "linux", "config": config}
        manifest = {"schemaVersion": 2, "config": _add_json(tar, image), "layers": described}
        index = {"schemaVersion": 2, "manifests": [_add_json(tar, manifest)]}
        _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(tar, "index.json", json.dumps(index).encode())
    return path


def _add_json(tar: tarfile.TarFile, value: dict[str, Any]) -> dict[str, Any]:
    return _add_blob(tar, json.dumps(value).encode())


def _add_blob(tar: tarfile.TarFile, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    _add(tar, f"blobs/sha256/{digest}", data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
