# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from pvecri.errors import InternalError
from pvecri.images.manifest import BadImage, digest_of
from pvecri.images.pull.progress import StallTimeout
from pvecri.images.reference import parse
from pvecri.images.registry.oci_archive import OciArchive
from pvecri.images.registry.templates import file_name

DIGEST = "sha256:0123456789abcdef" + "0" * 48


def archive(path: Path, *blobs: bytes, **others: bytes) -> Path:
    """A tar with these blobs under their digests."""
    members = {f"./blobs/sha256/{digest_of(blob).removeprefix('sha256:')}": blob for blob in blobs} | others
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def opened(path: Path) -> OciArchive:
    found = OciArchive(path, 2)
    found.open()
    return found


def image(path: Path) -> Path:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 1}
    manifest = json.dumps({"config": config, "layers": []}).encode()
    named = {"mediaType": "application/vnd.oci.image.manifest.v1+json"}
    index = {"manifests": [{**named, "digest": digest_of(manifest), "size": len(manifest)}]}
    return archive(path, manifest, **{"index.json": json.dumps(index).encode()})


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("busybox", "busybox_latest_0123456789ab.tar"),
        ("127.0.0.1:5000/a/b.c-d:1.0_x", "b.c-d_1.0_x_0123456789ab.tar"),
        (f"quay.io/{'n' * 200}:{'t' * 120}", f"{'n' * 100}_{'t' * 100}_0123456789ab.tar"),
    ],
)
def test_template_file_name_is_valid_for_proxmox(reference: str, name: str) -> None:
    assert file_name(parse(reference), DIGEST) == name
    assert re.fullmatch(r"[\w.-]{1,255}", name)


def test_config_digest_of_an_archive_is_read_from_its_manifest(tmp_path: Path) -> None:
    assert opened(image(tmp_path / "image.tar")).config_digest() == DIGEST


def test_file_that_is_not_an_oci_archive_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive" * 1000)
    with pytest.raises(BadImage, match="text is not an OCI archive"):
        opened(tmp_path / "text")
    with pytest.raises(BadImage, match=r"it has no index\.json"):
        opened(archive(tmp_path / "empty", b"")).config_digest()
    with pytest.raises(InternalError, match=r"missing cannot be read: No such file"):
        opened(tmp_path / "missing")


def test_oversized_tar_header_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "hostile").write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(2048))
    with pytest.raises(BadImage, match="a header of"):
        opened(tmp_path / "hostile")


async def test_blob_is_read_through_a_pipe(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    found = opened(archive(tmp_path / "a.tar", b"other", data))
    pipe = await found.blob(digest_of(data))
    with os.fdopen(pipe.fd, "rb") as reader:
        assert await asyncio.to_thread(reader.read) == data
    await found.finish(pipe)
    assert digest_of(b"other") in found
    assert DIGEST not in found
    await found.close()


async def test_blob_with_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", b"content")
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    found = opened(path)
    pipe = await found.blob(digest_of(b"content"))
    with os.fdopen(pipe.fd, "rb") as reader:
        await asyncio.to_thread(reader.read)
    with pytest.raises(BadImage, match="has the digest"):
        await found.finish(pipe)
    await found.close()


async def test_archive_can_be_closed_while_a_blob_is_unread(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    found = opened(archive(tmp_path / "a.tar", data))
    pipe = await found.blob(digest_of(data))
    await found.close()
    os.close(pipe.fd)


async def test_stall_timeout_does_not_expire_while_it_is_suspended() -> None:
    stall = StallTimeout(30.0)
    async with stall.timeout:
        with stall.suspended():
            assert stall.timeout.when() is None
        assert stall.timeout.when() is not None
