# SPDX-License-Identifier: Apache-2.0
"""The CRI's streamed lists: one list in several messages, each well below gRPC's limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

CHUNK = 1 << 20
"""Bytes: the kubelet takes messages of 16 MiB; one entry, with a pod's annotations, is far below 1 MiB."""

M = TypeVar("M", bound=Message)


def chunks(entries: Iterable[M], size: int = CHUNK) -> Iterator[list[M]]:
    """Every entry once, in their order, in lists of about `size` bytes; no list is empty."""
    chunk: list[M] = []
    room = size
    for entry in entries:
        length = entry.ByteSize()
        if chunk and length > room:
            yield chunk
            chunk, room = [], size
        chunk.append(entry)
        room -= length
    if chunk:
        yield chunk
