# SPDX-License-Identifier: Apache-2.0
"""The images in memory, found by ID, tag or digest. Without I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.images import reference as references
from pvecri.images.reference import Reference
from pvecri.images.store import ImageRecord
from pvecri.model import ImageId

MIN_PREFIX: Final = 10
"""Digits of an ID's prefix: crictl and docker show 12 or 13, and shorter ones may be a repository's name."""

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]+)")


class _Index:
    """Which images have a name: a call that names an image costs the same among any number of them."""

    def __init__(self) -> None:
        self._images: dict[str, dict[ImageId, None]] = {}

    def add(self, names: Iterable[str], image: ImageId) -> None:
        for name in names:
            self._images.setdefault(name, {})[image] = None

    def discard(self, names: Iterable[str], image: ImageId) -> None:
        for name in names:
            images = self._images.get(name, {})
            images.pop(image, None)
            if not images:
                self._images.pop(name, None)

    def first(self, name: str) -> ImageId | None:
        return next(iter(self._images.get(name, ())), None)


class Catalog:
    """The images of the store. `pinned` are the references whose images the kubelet must not collect."""

    def __init__(self, records: Iterable[ImageRecord], pinned: Iterable[str]) -> None:
        self._pinned = _parsed(pinned)
        self._records: dict[ImageId, ImageRecord] = {}
        self._references = _Index()
        self._manifests = _Index()
        self._digests = _Index()
        self.generation = 0
        """Counts the changes."""
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
        self._unname(image.id)
        self._records[image.id] = replace(record, image=replace(image, pinned=pinned))
        for index, names in self._names(record):
            index.add(names, image.id)

    def drop(self, image: ImageId) -> None:
        self._unname(image)
        self._records.pop(image, None)

    def _unname(self, image: ImageId) -> None:
        self.generation += 1
        record = self._records.get(image)
        for index, names in self._names(record) if record else ():
            index.discard(names, image)

    def _names(self, record: ImageRecord) -> Iterator[tuple[_Index, Iterable[str]]]:
        digests = record.image.digests
        yield self._references, (*record.image.tags, *digests)
        yield self._manifests, record.manifests
        yield self._digests, [each.rpartition("@")[2] for each in digests]

    def with_reference(self, reference: Reference) -> ImageRecord | None:
        """The image with exactly this tag or digest."""
        return self._record(self._references.first(str(reference)))

    def with_manifest(self, digest: str) -> ImageRecord | None:
        """The image with a manifest or index of this digest, in any repository."""
        return self._record(self._manifests.first(digest) or self._digests.first(digest))

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

    def _record(self, image: ImageId | None) -> ImageRecord | None:
        return None if image is None else self._records[image]


def _parsed(pinned: Iterable[str]) -> frozenset[str]:
    return frozenset(str(references.parse(reference)) for reference in pinned)
