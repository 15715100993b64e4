# SPDX-License-Identifier: Apache-2.0
"""Upload of a CT template: POST /nodes/{node}/storage/{storage}/upload.

pveproxy's parser is strict: the parameters of the multipart body come first, each with no header but
Content-Disposition, and the file last.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Final

from pvecri.proxmox.body import FileBody
from pvecri.proxmox.tasks import Tasks, parse_upid
from pvecri.proxmox.transport import Call, Transport

FILE_TIMEOUT: Final = 3600.0
"""Seconds to send a file, and again for Proxmox to copy it to the storage."""


async def upload_template(
    transport: Transport, tasks: Tasks, node: str, storage: str, name: str, content: bytes | Path
) -> None:
    """Upload a template of this name and wait for the task. Idempotent. A file may be larger than the memory."""
    digest = await asyncio.to_thread(_digest, content)
    fields = {"content": "vztmpl", "checksum-algorithm": "sha256", "checksum": digest}
    body, content_type = multipart(name, content, fields)
    call = Call(
        method="POST",
        path=f"/nodes/{node}/storage/{storage}/upload",
        action=f"upload {name} to storage {storage}",
        body=body,
        content_type=content_type,
        # Proxmox overwrites a file of that name, here with the same content.
        repeatable=True,
        timeout=FILE_TIMEOUT if isinstance(content, Path) else 0.0,
    )
    upid = parse_upid(await transport.call(call, str), call.action)
    await tasks.wait(upid, call.action)


def multipart(filename: str, content: bytes | Path, fields: dict[str, str]) -> tuple[bytes | FileBody, str]:
    """The body and its content type. The boundary is the content's `checksum`, which it cannot contain."""
    boundary = f"pvecri-{fields['checksum']}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="filename"; filename="{filename}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    )
    head, tail = "".join(parts).encode(), f"\r\n--{boundary}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={boundary}"
    if isinstance(content, bytes):
        return b"".join((head, content, tail)), content_type
    return FileBody(head, content, content.stat().st_size, tail), content_type


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
