# SPDX-License-Identifier: Apache-2.0
"""Any number of images in a registry, quickly: one layer for all of them, a config for each."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from urllib.parse import urlsplit

from trial.image import ARCHITECTURES, CONFIG, LAYER, MANIFEST


class Publisher:
    """Pushes images to a registry by the distribution API. OSError or RuntimeError if it refuses one."""

    def __init__(self, registry: str, repository: str = "bench/many") -> None:
        """`registry` is HOST:PORT, without TLS."""
        self._connection = http.client.HTTPConnection(registry, timeout=30)
        self._path = f"/v2/{repository}"
        self._name = f"{registry}/{repository}"
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("file"))
        self._diff_id = _digest(buffer.getvalue())
        self._layer = self._push_blob(gzip.compress(buffer.getvalue(), mtime=0), LAYER)

    def push(self, number: int) -> str:
        """Push the image of a number; its reference."""
        config = {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Cmd": ["none"], "Labels": {"number": str(number)}},
            "rootfs": {"type": "layers", "diff_ids": [self._diff_id]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._push_blob(json.dumps(config).encode(), CONFIG),
            "layers": [self._layer],
        }
        url = f"{self._path}/manifests/{number}"
        self._request("PUT", url, json.dumps(manifest).encode(), {"Content-Type": MANIFEST})
        return f"{self._name}:{number}"

    def _push_blob(self, content: bytes, media_type: str) -> dict[str, object]:
        digest = _digest(content)
        location = urlsplit(self._request("POST", f"{self._path}/blobs/uploads/")["Location"])
        query = f"{location.query}&digest={digest}" if location.query else f"digest={digest}"
        self._request("PUT", f"{location.path}?{query}", content, {"Content-Type": "application/octet-stream"})
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _request(
        self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPMessage:
        self._connection.request(method, url, body, dict(headers or {}))
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise RuntimeError(f"{method} {url}: {response.status}: {text!r}")
        return response.headers


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
