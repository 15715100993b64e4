# SPDX-License-Identifier: Apache-2.0
"""Layer archives as streams: decompression, limits, malformed archives."""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.image_builder import LayerBuilder, digest_of, gzipped, plain, zstd

from pvecri.images.unpacking.tar_stream import MAX_HEADER, Archive, LayerError, decompressed, members


def pieces(data: bytes, size: int = 700) -> Iterator[bytes]:
    return iter([data[start : start + size] for start in range(0, len(data), size)])


def names(data: bytes) -> list[str]:
    return [member.name for member in members(Archive(pieces(data), 1 << 30))]


def written(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("compress", [plain, gzipped, zstd])
def test_compression_is_detected_by_magic_number(tmp_path: Path, compress: object) -> None:
    data = os.urandom(100_000) + b"0" * 5_000_000
    fd = written(tmp_path / "blob", compress(data))  # type: ignore[operator]
    assert b"".join(decompressed(fd)) == data


def test_all_gzip_members_are_decompressed(tmp_path: Path) -> None:
    fd = written(tmp_path / "blob", gzip.compress(b"one") + gzip.compress(b"two"))
    assert b"".join(decompressed(fd)) == b"onetwo"


@pytest.mark.parametrize("compress", [gzipped, zstd])
def test_truncated_compressed_blob_is_refused(tmp_path: Path, compress: object) -> None:
    fd = written(tmp_path / "blob", compress(os.urandom(10_000))[:-100])  # type: ignore[operator]
    with pytest.raises(LayerError):
        list(decompressed(fd))


def test_members_are_in_archive_order_and_the_digest_covers_all_bytes() -> None:
    data = LayerBuilder().directory("a").file("a/b", "x" * 2000).symlink("c", "a").build() + b"\0" * 3000
    archive = Archive(pieces(data), 1 << 30)
    assert [member.name for member in members(archive)] == ["a", "a/b", "c"]
    assert archive.digest() == digest_of(data)


def test_empty_archive_and_one_without_end_mark_are_accepted() -> None:
    assert names(LayerBuilder().file("a").build()[:512]) == ["a"]
    assert names(b"") == names(b"\0" * 1024) == []


def test_broken_header_in_the_middle_is_refused() -> None:
    data = LayerBuilder().file("a").file("b").build()
    with pytest.raises(LayerError, match="not a tar archive"):
        names(data[:512] + b"x" * 512 + data[1024:])


def test_archive_truncated_inside_a_header_is_refused() -> None:
    with pytest.raises(LayerError, match="not a tar archive"):
        names(LayerBuilder().file("a").file("b").build()[:700])


def test_blob_that_is_not_an_archive_is_refused() -> None:
    with pytest.raises(LayerError, match="not a tar archive"):
        names(b"hello" * 1000)


def test_archive_larger_than_the_limit_is_refused_with_the_setting() -> None:
    archive = Archive(iter([b"x" * 600] * 3), 1000)
    with pytest.raises(LayerError, match=r"images\.max_layer_size"):
        archive.skip_to(2000)


def test_gigabyte_header_is_refused_before_it_is_read() -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, MAX_HEADER * 2
    with pytest.raises(LayerError, match="a header of"):
        names(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)


@given(st.binary(max_size=3000), st.integers(0, 1023), st.binary(min_size=1, max_size=40))
def test_arbitrary_bytes_are_read_or_refused(tail: bytes, at: int, splice: bytes) -> None:
    data = LayerBuilder().file("a", "content", pax_headers={"SCHILY.xattr.user.a": "b"}).build()
    with contextlib.suppress(LayerError):
        names(data[:at] + splice + data[at + len(splice) :] + tail)
