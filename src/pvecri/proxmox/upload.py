# SPDX-License-Identifier: Apache-2.0
"""Upload of a CT template: POST /nodes/{node}/storage/{storage}/upload.

pveproxy's parser is strict: the parameters of the multipart body come first, each with no header but
Content-Disposition, and the file last.
"""

from __future__ import annotations

import hashlib

from pvecri.proxmox.tasks import Tasks, parse_upid
from pvecri.proxmox.transport import Call, Transport


async def upload_template(
    transport: Transport, tasks: Tasks, node: str, storage: str, name: str, content: bytes
) -> None:
    """Upload a template of this name and wait for the task. Idempotent."""
    fields = {
        "content": "vztmpl",
        "checksum-algorithm": "sha256",
        "checksum": hashlib.sha256(content).hexdigest(),
    }
    body, content_type = multipart(name, content, fields)
    call = Call(
        method="POST",
        path=f"/nodes/{node}/storage/{storage}/upload",
        action=f"upload {name} to storage {storage}",
        body=body,
        content_type=content_type,
        # Proxmox overwrites a file of that name, here with the same content.
        repeatable=True,
    )
    upid = parse_upid(await transport.call(call, str), call.action)
    await tasks.wait(upid, call.action)


def multipart(filename: str, content: bytes, fields: dict[str, str]) -> tuple[bytes, str]:
    """The body and its content type. The boundary is a hash of the content, which cannot contain it."""
    boundary = f"pvecri-{hashlib.sha256(content).hexdigest()}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="filename"; filename="{filename}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join(("".join(parts).encode(), content, f"\r\n--{boundary}--\r\n".encode()))
    return body, f"multipart/form-data; boundary={boundary}"
