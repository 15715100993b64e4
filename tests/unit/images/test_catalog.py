# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pvecri.images.catalog import Catalog
from pvecri.images.reference import parse
from pvecri.images.store import ImageRecord
from pvecri.model import Image, ImageId

DIGEST = "sha256:" + "0d" * 32
OTHER = "sha256:" + "1d" * 32


def record(fill: str, *tags: str, digests: tuple[str, ...] = ()) -> ImageRecord:
    image = Image(id=ImageId("sha256:" + fill * 32), tags=tags, digests=digests)
    return ImageRecord(image=image, layers=())


BUSYBOX = record("aa", "docker.io/library/busybox:1", digests=(f"docker.io/library/busybox@{DIGEST}",))
PAUSE = record("ab", "registry.k8s.io/pause:3")


@pytest.mark.parametrize(
    "name",
    [
        "sha256:" + "aa" * 32,
        "aa" * 32,
        "aa" * 6,
        "sha256:" + "aa" * 7,
        "busybox:1",
        "docker.io/library/busybox:1",
        f"busybox@{DIGEST}",
        f"busybox:other@{DIGEST}",
    ],
)
def test_image_is_found_by_id_prefix_tag_and_digest(name: str) -> None:
    assert Catalog((BUSYBOX, PAUSE), ()).find(name) == BUSYBOX


@pytest.mark.parametrize("name", ["busybox", "busybox:2", "aa", "sha256:" + "ac" * 32, f"x@{DIGEST}", "", "A B"])
def test_unknown_names_find_no_image(name: str) -> None:
    assert Catalog((BUSYBOX, PAUSE), ()).find(name) is None


def test_ambiguous_id_prefix_finds_no_image() -> None:
    first = record("aa")
    twin = ImageRecord(image=Image(id=ImageId(first.image.id[:-1] + "0")), layers=())
    assert Catalog((first, twin), ()).find("aa" * 8) is None


def test_images_of_pinned_references_are_pinned() -> None:
    catalog = Catalog((BUSYBOX, PAUSE), ("registry.k8s.io/pause:3",))
    pinned = {key: each.image.pinned for key, each in catalog.records.items()}
    assert pinned == {BUSYBOX.image.id: False, PAUSE.image.id: True}


def test_image_keeps_its_digest_when_its_tag_moves() -> None:
    catalog = Catalog((BUSYBOX, PAUSE), ())
    before, now = catalog.naming(record("cc"), parse("busybox:1"), OTHER)
    assert (before.image.id, before.image.tags, before.image.digests) == (
        BUSYBOX.image.id,
        (),
        BUSYBOX.image.digests,
    )
    assert now.image.tags == ("docker.io/library/busybox:1",)
    assert now.image.digests == (f"docker.io/library/busybox@{OTHER}",)


def test_second_tag_of_an_image_is_added_to_the_first() -> None:
    catalog = Catalog((BUSYBOX,), ())
    (now,) = catalog.naming(BUSYBOX, parse("busybox:latest"), DIGEST)
    assert now.image.tags == ("docker.io/library/busybox:1", "docker.io/library/busybox:latest")
    assert now.image.digests == BUSYBOX.image.digests


def test_pull_by_digest_adds_no_tag() -> None:
    (now,) = Catalog((), ()).naming(record("cc"), parse(f"busybox@{DIGEST}"), DIGEST)
    assert (now.image.tags, now.image.digests) == ((), (f"docker.io/library/busybox@{DIGEST}",))
