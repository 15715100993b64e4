# SPDX-License-Identifier: Apache-2.0
"""The multipart body of POST /nodes/{node}/storage/{storage}/upload.

Not aiohttp's, because pveproxy's parser is strict: the parameters come first, each with no header but
Content-Disposition, and the file last.
"""

from __future__ import annotations

import hashlib


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
