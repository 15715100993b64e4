# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from support.image_builder import build_image, digest_of, gzipped, plain, zstd

from pvecri.images import manifest
from pvecri.images.manifest import BadImage, Descriptor
from pvecri.model import ImageConfig


@pytest.mark.parametrize("docker", [False, True])
def test_a_manifest_and_its_config_make_the_images_content(docker: bool) -> None:
    image = build_image(b"one", b"two", docker=docker, config={"Env": ["A=b"], "Volumes": {"/v": {}, "/a": {}}})
    content = manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))
    assert content.config_digest == image.id
    assert [layer.digest for layer in content.layers] == [digest_of(blob) for blob in image.layers]
    assert [layer.diff_id for layer in content.layers] == [digest_of(b"one"), digest_of(b"two")]
    assert content.config == ImageConfig(env=("A=b",), volumes=("/a", "/v"))


def test_an_images_size_is_its_compressed_layers_and_its_config() -> None:
    image = build_image(b"0" * 10_000)
    content = manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))
    assert content.size == len(image.config) + len(image.layers[0])


@pytest.mark.parametrize("compress", [plain, gzipped, zstd])
def test_each_usual_compression_is_known(compress: object) -> None:
    assert manifest.parse_manifest(build_image(b"x", compress=compress).manifest)  # type: ignore[arg-type]


def test_null_in_a_config_means_empty() -> None:
    image = build_image(config={"Env": None, "Cmd": None, "Labels": None, "Volumes": None, "User": None})
    assert manifest.parse_config(image.config, manifest.parse_manifest(image.manifest)).config == ImageConfig()


@pytest.mark.parametrize(
    "layer_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ],
)
def test_a_layer_that_cannot_be_unpacked_is_named_with_its_media_type(layer_type: str) -> None:
    image = build_image(b"x", layer_type=layer_type)
    with pytest.raises(BadImage, match=f"layer {digest_of(image.layers[0])} has the media type .*not supported"):
        manifest.parse_manifest(image.manifest)


def test_an_artifact_is_not_an_image() -> None:
    image = build_image(config_type="application/vnd.cncf.helm.config.v1+json")
    with pytest.raises(BadImage, match=r"not a container image.*helm"):
        manifest.parse_manifest(image.manifest)


def test_manifest_and_config_must_have_the_same_number_of_layers() -> None:
    image = build_image(b"x", diff_ids=[digest_of(b"x"), digest_of(b"y")])
    with pytest.raises(BadImage, match="the config has 2 layers and the manifest 1"):
        manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))


def test_a_diff_id_that_is_a_path_is_refused() -> None:
    image = build_image(b"x", diff_ids=["../../etc"])
    with pytest.raises(BadImage, match="is not a sha256 digest"):
        manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"config": {}}', b"\xff"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match="manifest cannot be read"):
        manifest.parse_manifest(data)


def test_a_layout_names_exactly_one_manifest() -> None:
    one = {"mediaType": "m", "digest": digest_of(b""), "size": 0}
    assert manifest.parse_layout(json.dumps({"manifests": [one]}).encode()).digest == digest_of(b"")
    with pytest.raises(BadImage, match="names 2 manifests"):
        manifest.parse_layout(json.dumps({"manifests": [one, one]}).encode())


def test_content_is_held_to_its_size_and_digest() -> None:
    promised = Descriptor(media_type="m", digest=digest_of(b"abc"), size=3)
    assert manifest.verified(b"abc", promised, "config") == b"abc"
    with pytest.raises(BadImage, match="has 2 bytes, expected 3"):
        manifest.verified(b"ab", promised, "config")
    with pytest.raises(BadImage, match=f"has the digest {digest_of(b'abd')}"):
        manifest.verified(b"abd", promised, "config")
