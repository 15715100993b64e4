# SPDX-License-Identifier: Apache-2.0
"""The images in memory, by every name a client may give them. Without I/O."""

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

SHORTEST_PREFIX: Final = 10
"""Clients show 12 or 13 digits of an image id; fewer than this many are taken for a name only."""

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]+)")


class Catalog:
    """The images that are in the store. `pinned` are the references whose images are never garbage."""

    def __init__(self, records: Iterable[ImageRecord], pinned: Iterable[str]) -> None:
        self._pinned = frozenset(str(references.parse(reference)) for reference in pinned)
        self._records: dict[ImageId, ImageRecord] = {}
        for record in records:
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
        """The image that has exactly this tag or digest reference."""
        name = str(reference)
        return self._first(lambda image: name in image.tags or name in image.digests)

    def with_manifest(self, digest: str) -> ImageRecord | None:
        """The image whose manifest, or one of whose indexes, has this digest, in whatever repository."""
        known = (record for record in self._records.values() if digest in record.manifests)
        return next(known, None) or self._first(
            lambda image: any(each.endswith(f"@{digest}") for each in image.digests)
        )

    def find(self, text: str) -> ImageRecord | None:
        """By id, by reference, by a unique beginning of the id, in this order; None too for nonsense."""
        match = _HEX.fullmatch(text)
        if match and (record := self._records.get(ImageId(f"sha256:{match[1]}"))):
            return record
        try:
            found = self.with_reference(references.parse(text))
        except InvalidArgument:
            found = None
        if found or not match or len(match[1]) < SHORTEST_PREFIX:
            return found
        candidates = [each for key, each in self._records.items() if key.startswith(f"sha256:{match[1]}")]
        return candidates[0] if len(candidates) == 1 else None

    def naming(self, record: ImageRecord, reference: Reference, digest: str) -> list[ImageRecord]:
        """The records to store when `reference`, whose content has `digest`, now names `record`'s image.

        A tag moves: the image that had it keeps its digests.
        """
        changed = []
        image = record.image
        known = self._records.get(image.id)
        tags = dict.fromkeys(known.image.tags if known else ())
        digests = dict.fromkeys(known.image.digests if known else ())
        digests[str(reference.at(digest))] = None
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
