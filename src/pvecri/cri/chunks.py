# SPDX-License-Identifier: Apache-2.0
"""The CRI's streamed lists: one list in several messages, each below gRPC's size limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

CHUNK = 1 << 20
"""Bytes: the kubelet accepts messages of 16 MiB; an entry, with a pod's annotations, is below 1 MiB."""

M = TypeVar("M", bound=Message)


def chunks(entries: Iterable[M], size: int = CHUNK) -> Iterator[list[M]]:
    """Split `entries`, in order, into non-empty lists of about `size` bytes."""
    chunk: list[M] = []
    room = size
    for entry in entries:
        length = entry.ByteSize()
        # An entry larger than `size` is sent alone: the CRI cannot split one.
        if chunk and length > room:
            yield chunk
            chunk, room = [], size
        chunk.append(entry)
        room -= length
    if chunk:
        yield chunk
