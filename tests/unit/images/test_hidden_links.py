# SPDX-License-Identifier: Apache-2.0
"""Which symlinks of lower layers the left-out directories of an upper one would hide."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.images.drivers.base import LayerKey
from pvecri.images.drivers.hidden_links import MAX_LINKS, hidden_links
from pvecri.images.drivers.parents import ExtractedLayer
from pvecri.images.pull.variants import variant_key


def layered(tmp_path: Path, *layers: dict[str, str], implicit: tuple[str, ...]) -> dict[str, str]:
    """`layers`, lowest first: links by path, or a directory for an empty target, or a file for `.`."""
    extracted = []
    for number, entries in enumerate(layers):
        top = tmp_path / str(number)
        for name, target in {".": "", **entries}.items():
            place = top / name
            (place if not target else place.parent).mkdir(parents=True, exist_ok=True)
            if target == ".":
                place.touch()
            elif target:
                place.symlink_to(target)
        extracted.append(ExtractedLayer(top, frozenset()))
    extracted[-1] = extracted[-1]._replace(implicit=frozenset({".", *implicit}))
    return hidden_links(extracted)


@pytest.mark.parametrize(
    ("lower", "implicit", "links"),
    [
        ({"lib": "usr/lib", "usr/lib": ""}, ("lib",), {"lib": "usr/lib"}),
        ({"lib": "/usr/lib"}, ("lib", "lib/a", "lib/a/b"), {"lib": "/usr/lib"}),
        ({"lib": "usr/lib", "usr/lib": ""}, ("usr", "usr/lib", "other"), {}),
        ({"lib": "lib64", "lib64": "usr/lib"}, ("lib",), {"lib": "lib64", "lib64": "usr/lib"}),
        ({"a/b": "../../c", "c/d": "e"}, ("a", "a/b", "a/b/d"), {"a/b": "../../c", "c/d": "e"}),
        ({"lib": "usr/./lib//", "usr": "sys"}, ("lib",), {"lib": "usr/./lib//", "usr": "sys"}),
        ({"lib": "file", "file": "."}, ("lib", "lib/a"), {}),
        ({"lib": "usr", "usr/a": "/file", "file": "."}, ("lib", "lib/a", "lib/a/b"), {"lib": "usr"}),
        ({"lib": "file/below", "file": "."}, ("lib",), {}),
        ({"lib": "."}, ("lib", "lib/a"), {}),
        ({"lib": "a\nb"}, ("lib",), {}),
        ({"a": "b", "b": "a"}, ("a",), {"a": "b", "b": "a"}),
    ],
)
def test_links_on_the_way_are_found(
    tmp_path: Path, lower: dict[str, str], implicit: tuple[str, ...], links: dict[str, str]
) -> None:
    assert layered(tmp_path, lower, dict.fromkeys(implicit, ""), implicit=implicit) == links


def test_explicit_directory_hides_the_link(tmp_path: Path) -> None:
    assert layered(tmp_path, {"lib": "usr/lib"}, {"lib/a": ""}, implicit=("lib/a",)) == {}


def test_link_of_the_lowest_layer_shows_through_those_between(tmp_path: Path) -> None:
    layers = ({"lib": "usr/lib"}, {"usr/lib": ""}, {"lib": ""})
    assert layered(tmp_path, *layers, implicit=("lib",)) == {"lib": "usr/lib"}
    (tmp_path / "1/lib").touch()
    assert hidden_links([ExtractedLayer(tmp_path / str(n), frozenset({"lib"})) for n in range(3)]) == {}


def test_links_do_not_lead_out_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "outside").symlink_to("secret")
    found = layered(
        tmp_path, {"up": "../../../outside", "self": str(tmp_path)}, {"up": ""}, implicit=("up", "self")
    )
    assert found == {"up": "../../../outside", "self": str(tmp_path)}


def test_no_more_links_are_followed_than_by_the_kernel(tmp_path: Path) -> None:
    chain = {f"l{number}": f"l{number + 1}" for number in range(2 * MAX_LINKS)}
    assert len(layered(tmp_path, chain, {"l0": ""}, implicit=("l0",))) == MAX_LINKS


def test_variants_differ_by_layer_and_links() -> None:
    one, two = LayerKey("1"), LayerKey("2")
    keys = [variant_key(one, {"a": "b"}), variant_key(two, {"a": "b"}), variant_key(one, {"a": "c", "d": "e"})]
    assert len(set(keys)) == 3
    assert variant_key(one, {"d": "e", "a": "c"}) == keys[2]
    assert all(key.isalnum() for key in keys)
