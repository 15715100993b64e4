# SPDX-License-Identifier: Apache-2.0
"""The images in memory, found by ID, tag or digest. Without I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.images import reference as references
from pvecri.images.reference import Reference
from pvecri.images.store import ImageRecord
from pvecri.model import Image, ImageId

MIN_PREFIX: Final = 10
"""Digits of an ID's prefix: crictl and docker show 12 or 13, and shorter ones may be a repository's name."""

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]+)")


class Catalog:
    """The images of the store. `pinned` are the references whose images the kubelet must not collect."""

    def __init__(self, records: Iterable[ImageRecord], pinned: Iterable[str]) -> None:
        self._pinned = _parsed(pinned)
        self._records: dict[ImageId, ImageRecord] = {}
        for record in records:
            self.put(record)

    def pin(self, pinned: Iterable[str]) -> None:
        """Replace the pinned references."""
        self._pinned = _parsed(pinned)
        for record in list(self._records.values()):
            self.put(record)

    @property
    def records(self) -> Mapping[ImageId, ImageRecord]:
        return self._records

    def put(self, record: ImageRecord) -> None:
        image = record.image
        pinned = not self._pinned.isdisjoint((*image.tags, *image.digests))
        self._records[image.id] = replace(record, image=replace(image, pinned=pinned))

    def drop(self, image: ImageId) -> None:
        self._records.pop(image, None)

    def with_reference(self, reference: Reference) -> ImageRecord | None:
        """The image with exactly this tag or digest."""
        name = str(reference)
        return self._first(lambda image: name in image.tags or name in image.digests)

    def with_manifest(self, digest: str) -> ImageRecord | None:
        """The image with a manifest or index of this digest, in any repository."""
        known = (record for record in self._records.values() if digest in record.manifests)
        return next(known, None) or self._first(
            lambda image: any(each.endswith(f"@{digest}") for each in image.digests)
        )

    def find(self, text: str) -> ImageRecord | None:
        """By ID, reference or unique prefix of the ID, in this order; None also if `text` is none of them."""
        match = _HEX.fullmatch(text)
        if match and (record := self._records.get(ImageId(f"sha256:{match[1]}"))):
            return record
        try:
            found = self.with_reference(references.parse(text))
        except InvalidArgument:
            found = None
        if found or not match or len(match[1]) < MIN_PREFIX:
            return found
        candidates = [each for key, each in self._records.items() if key.startswith(f"sha256:{match[1]}")]
        return candidates[0] if len(candidates) == 1 else None

    def naming(self, record: ImageRecord, reference: Reference, digest: str) -> list[ImageRecord]:
        """The changed records after `reference`, which resolved to `digest`, was given to `record`'s image.

        A tag moves: the image that had it loses it, and keeps its digests.
        """
        changed = []
        image = record.image
        known = self._records.get(image.id)
        tags = dict.fromkeys(known.image.tags if known else ())
        digests = dict.fromkeys(known.image.digests if known else ())
        digests[str(reference.at(digest))] = None  # a dict as an ordered set
        if reference.tag:
            tags[str(reference)] = None
            before = self.with_reference(reference)
            if before and before.image.id != image.id:
                left = tuple(tag for tag in before.image.tags if tag != str(reference))
                changed.append(replace(before, image=replace(before.image, tags=left)))
        changed.append(replace(record, image=replace(image, tags=tuple(tags), digests=tuple(digests))))
        return changed

    def _first(self, matches: Callable[[Image], bool]) -> ImageRecord | None:
        return next((record for record in self._records.values() if matches(record.image)), None)


def _parsed(pinned: Iterable[str]) -> frozenset[str]:
    return frozenset(str(references.parse(reference)) for reference in pinned)
