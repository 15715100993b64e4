# SPDX-License-Identifier: Apache-2.0
"""The upload's body is as Proxmox's parser wants it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.proxmox.body import FileBody
from pvecri.proxmox.upload import multipart


def test_fields_come_first_and_the_file_last() -> None:
    body, content_type = multipart("a.tar.gz", b"\x1f\x8b\r\n--", {"content": "vztmpl", "checksum": "ff"})

    assert isinstance(body, bytes)
    boundary = content_type.removeprefix("multipart/form-data; boundary=")
    assert body.decode("latin-1").replace(boundary, "B") == (
        '--B\r\nContent-Disposition: form-data; name="content"\r\n\r\nvztmpl\r\n'
        '--B\r\nContent-Disposition: form-data; name="checksum"\r\n\r\nff\r\n'
        '--B\r\nContent-Disposition: form-data; name="filename"; filename="a.tar.gz"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n\x1f\x8b\r\n--\r\n--B--\r\n"
    )


def test_body_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    file = tmp_path / "a.tar.zst"
    file.write_bytes(content)
    fields = {"content": "vztmpl", "checksum": "ff"}

    whole, _ = multipart(file.name, content, fields)
    body, _ = multipart(file.name, file, fields)

    assert isinstance(body, FileBody)
    assert b"".join(body.chunks()) == whole
    assert len(body) == len(whole)


def test_file_that_shrinks_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.zst"
    file.write_bytes(b"content")
    body, _ = multipart(file.name, file, {"checksum": "ff"})
    file.write_bytes(b"con")

    assert isinstance(body, FileBody)
    with pytest.raises(OSError, match="has become shorter"):
        list(body.chunks())
