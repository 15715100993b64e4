# SPDX-License-Identifier: Apache-2.0
"""Writing an image to an OCI archive (image-spec, image-layout.md).

The compressed layers of a pull are not kept, so the image's files are packed again, into one layer. The config
stays the same but for diff IDs and history; so the image's ID, the config's digest, changes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Final

from pvecri.errors import CommandError
from pvecri.images.convert import tar_command

_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CHUNK: Final = 1 << 20


def write_archive(root: Path, config: bytes, name: str, target: Path) -> None:
    """Write the OCI archive `target` of the files below `root` and the image config `config`. Blocks.

    `name` is the image's reference in the archive. FileExistsError if `target` exists.
    """
    with target.open("xb") as archive, TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        blobs = Path(scratch, "blobs/sha256")
        blobs.mkdir(parents=True)
        diff_id, layer = _pack(root, blobs)
        document = json.loads(config)
        document["rootfs"] = {"type": "layers", "diff_ids": [diff_id]}
        document.pop("history", None)  # it has an entry for each of the former layers
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _blob(blobs, json.dumps(document).encode(), _CONFIG),
            "layers": [layer],
        }
        described = _blob(blobs, json.dumps(manifest).encode(), _MANIFEST)
        described["annotations"] = {"org.opencontainers.image.ref.name": name}
        Path(scratch, "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        Path(scratch, "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for part in ("oci-layout", "index.json", "blobs"):
                tar.add(Path(scratch, part), part)


def _pack(root: Path, blobs: Path) -> tuple[str, dict[str, Any]]:
    """Pack the files into a layer; its diff ID and its descriptor."""
    command = tar_command(root)
    content = hashlib.sha256()
    part = blobs / "layer.part"
    # A file for stderr: a pipe that is read after stdout would stop a tar that complains of many files.
    with TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as tar:
        assert tar.stdout is not None
        with gzip.GzipFile(part, "wb", mtime=0) as packed:  # a time would change the digest
            while chunk := tar.stdout.read(_CHUNK):
                content.update(chunk)
                packed.write(chunk)
        if tar.wait() != 0:
            errors.seek(0)
            raise CommandError("tar", tar.returncode, errors.read(_CHUNK).decode(errors="replace"))
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = part.stat().st_size
    part.rename(blobs / digest)
    return f"sha256:{content.hexdigest()}", {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": size}


def _blob(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
