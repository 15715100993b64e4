# SPDX-License-Identifier: Apache-2.0
"""Images made on the spot, the demo's from Debian's busybox-static."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PAGE = b"Hello from a container in a pod in a Proxmox container.\n"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def write_image(directory: Path) -> None:
    """Write an image of one layer, busybox and a page, as an OCI image layout."""
    write_layout(directory, [_layer()], ("sh",))


def write_layout(directory: Path, layers: Sequence[bytes], command: Sequence[str]) -> None:
    """Write an image of these tar archives, lowest first, as an OCI image layout (image-spec, image-layout.md)."""
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _blob(directory, json.dumps(config).encode(), CONFIG),
        "layers": [_blob(directory, gzip.compress(layer, 6, mtime=0), LAYER) for layer in layers],
    }
    index = {"schemaVersion": 2, "manifests": [_blob(directory, json.dumps(manifest).encode(), MANIFEST)]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _layer() -> bytes:
    busybox = shutil.which("busybox")
    assert busybox is not None, "script/bootstrap installs busybox-static"
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "www"):
            _add(tar, name, tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        _add(tar, "bin/busybox", tarfile.REGTYPE, Path(busybox).read_bytes(), mode=0o755)
        for applet in sorted({*applets} - {"busybox"}):
            _add(tar, f"bin/{applet}", tarfile.SYMTYPE, target="busybox")
        _add(tar, "etc/passwd", tarfile.REGTYPE, b"root:x:0:0:root:/:/bin/sh\n")
        _add(tar, "www/index.html", tarfile.REGTYPE, PAGE)
    return buffer.getvalue()


def _add(
    tar: tarfile.TarFile, name: str, kind: bytes, data: bytes = b"", mode: int = 0o644, target: str = ""
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(data)
    tar.addfile(entry, io.BytesIO(data))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(directory: Path, data: bytes, media_type: str) -> dict[str, object]:
    """Write a blob and describe it."""
    digest = _digest(data)
    path = directory / "blobs" / digest.replace(":", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def push(directory: Path, reference: str) -> None:
    """Copy an image layout into a registry that speaks plain HTTP."""
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    subprocess.run([*command, f"oci:{directory}", f"docker://{reference}"], check=True, capture_output=True)
