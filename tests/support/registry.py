# SPDX-License-Identifier: Apache-2.0
"""A real registry (Debian's docker-registry) on the loopback interface, for the time of a test."""

from __future__ import annotations

import http.client
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.image_builder import BuiltImage, digest_of
from trial.registry import serving

USER, PASSWORD = "user", "secret"
_HTPASSWD = "user:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"


class Registry:
    """`address` is what goes before the repository's name in a reference; it speaks plain HTTP."""

    def __init__(self, address: str, storage: Path, process: subprocess.Popen[bytes], *, protected: bool) -> None:
        self.address = address
        self._storage = storage
        self._process = process
        self._protected = protected

    def push(self, repository: str, tag: str, image: BuiltImage) -> str:
        """Upload the image, all its platforms; returns its full reference."""
        for blob in image.blobs:
            self._push_blob(repository, blob)
        for media_type, manifest in image.children:
            self._put(f"/v2/{repository}/manifests/{digest_of(manifest)}", manifest, media_type)
        self._put(f"/v2/{repository}/manifests/{tag}", image.manifest, image.media_type)
        return f"{self.address}/{repository}:{tag}"

    def forget_blobs(self, *digests: str) -> None:
        """What fetches one of these blobs from now on fails."""
        for digest in digests:
            (self._blob(digest)).unlink()

    def corrupt_blob(self, digest: str, data: bytes) -> None:
        """The registry sends `data` where it promises the content of `digest`."""
        self._blob(digest).write_bytes(data)

    def trust_on_node(self, directory: Path, environment: pytest.MonkeyPatch) -> None:
        """Nodes that are started from now on may speak plain HTTP to it."""
        conf = directory / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{self.address}"\ninsecure = true\n')
        environment.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))

    def stop(self) -> None:
        """No longer there. Idempotent."""
        self._process.terminate()
        self._process.wait()

    def _blob(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self._storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"

    def _push_blob(self, repository: str, blob: bytes) -> None:
        location = self._request("POST", f"/v2/{repository}/blobs/uploads/", b"", {})["Location"]
        path = location.removeprefix(f"http://{self.address}")
        self._put(f"{path}&digest={digest_of(blob)}", blob, "application/octet-stream")

    def _put(self, path: str, body: bytes, media_type: str) -> None:
        self._request("PUT", path, body, {"Content-Type": media_type})

    def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
        if self._protected:
            headers["Authorization"] = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        assert response.status in {200, 201, 202}, (method, path, response.status, answer)
        return dict(response.getheaders())


@contextmanager
def running_registry(directory: Path, *, protected: bool = False) -> Iterator[Registry]:
    """A registry that keeps its things in `directory`; `protected` it wants USER and PASSWORD."""
    storage = directory / "registry"
    storage.mkdir()
    config: dict[str, object] = {
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "cache": {}, "delete": {"enabled": True}},
    }
    if protected:
        (directory / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    try:
        with serving(directory, config) as (process, address):
            yield Registry(address, storage, process, protected=protected)
    finally:
        shutil.rmtree(storage)
