# SPDX-License-Identifier: Apache-2.0
"""The upload's body is as Proxmox's parser wants it."""

from __future__ import annotations

from pvecri.proxmox.upload import multipart


def test_fields_come_first_and_the_file_last() -> None:
    body, content_type = multipart("a.tar.gz", b"\x1f\x8b\r\n--", {"content": "vztmpl", "checksum": "ff"})

    boundary = content_type.removeprefix("multipart/form-data; boundary=")
    assert body.decode("latin-1").replace(boundary, "B") == (
        '--B\r\nContent-Disposition: form-data; name="content"\r\n\r\nvztmpl\r\n'
        '--B\r\nContent-Disposition: form-data; name="checksum"\r\n\r\nff\r\n'
        '--B\r\nContent-Disposition: form-data; name="filename"; filename="a.tar.gz"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n\x1f\x8b\r\n--\r\n--B--\r\n"
    )
    assert boundary.encode() not in b"\x1f\x8b\r\n--"
