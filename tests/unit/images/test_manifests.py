# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from support.image_builder import build_image, digest_of, gzipped, plain, zstd

from pvecri.images import manifest
from pvecri.images.manifest import BadImage, Descriptor
from pvecri.model import ImageConfig


@pytest.mark.parametrize("docker", [False, True])
def test_content_is_read_from_manifest_and_config(docker: bool) -> None:
    image = build_image(b"one", b"two", docker=docker, config={"Env": ["A=b"], "Volumes": {"/v": {}, "/a": {}}})
    content = manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))
    assert content.id == image.id
    assert [layer.digest for layer in content.layers] == [digest_of(blob) for blob in image.layers]
    assert [layer.diff_id for layer in content.layers] == [digest_of(b"one"), digest_of(b"two")]
    assert content.config == ImageConfig(env=("A=b",), volumes=("/a", "/v"))


def test_image_size_is_that_of_compressed_layers_and_config() -> None:
    image = build_image(b"0" * 10_000)
    content = manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))
    assert content.size == len(image.config) + len(image.layers[0])


@pytest.mark.parametrize("compress", [plain, gzipped, zstd])
def test_gzip_zstd_and_uncompressed_layers_are_accepted(compress: object) -> None:
    assert manifest.parse_manifest(build_image(b"x", compress=compress).manifest)  # type: ignore[arg-type]


def test_null_in_a_config_means_empty() -> None:
    image = build_image(config={"Env": None, "Cmd": None, "Labels": None, "Volumes": None, "User": None})
    assert manifest.parse_config(image.config, manifest.parse_manifest(image.manifest)).config == ImageConfig()


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (
            {"Env": "A=b", "Cmd": "sh", "Entrypoint": "/e"},
            ImageConfig(env=("A=b",), cmd=("sh",), entrypoint=("/e",)),
        ),
        ({"Env": [None], "Cmd": ["a", None]}, ImageConfig(env=("",), cmd=("a", ""))),
        ({"Labels": {"a": None}, "Volumes": {"/v": None}}, ImageConfig(labels={"a": ""}, volumes=("/v",))),
        ({"StopSignal": "rubbish", "WorkingDir": "a"}, ImageConfig(stop_signal="rubbish", working_dir="a")),
        ({"ExposedPorts": None, "OnBuild": None, "Healthcheck": 5, "Unknown": [{}]}, ImageConfig()),
    ],
)
def test_config_is_read_as_docker_reads_it(config: dict[str, object], read: ImageConfig) -> None:
    image = build_image(config=config)
    assert manifest.parse_config(image.config, manifest.parse_manifest(image.manifest)).config == read


@pytest.mark.parametrize(
    "document",
    [
        b'{"rootfs": {"type": "layers", "diff_ids": []}}',
        b'{"rootfs": {"diff_ids": null}, "config": null, "history": null, "architecture": "", "os": null}',
        b'{"rootfs": null, "author": "J\xfcrgen"}',
        b"{}",
    ],
)
def test_fields_that_no_container_needs_may_be_missing_null_or_malformed(document: bytes) -> None:
    content = manifest.parse_config(document, manifest.parse_manifest(build_image().manifest))
    assert (content.config, content.layers) == (ImageConfig(), ())


def test_text_that_is_not_utf8_is_replaced_and_the_digest_is_of_the_bytes() -> None:
    document = b'{"rootfs": {}, "config": {"Labels": {"maintainer": "J\xfcrgen"}}}'
    content = manifest.parse_config(document, manifest.parse_manifest(build_image().manifest))
    assert content.config.labels == {"maintainer": "J\ufffdrgen"}
    assert content.id == digest_of(document)


def test_manifest_with_null_layers_has_none() -> None:
    document = {**json.loads(build_image().manifest), "layers": None}
    assert manifest.parse_manifest(json.dumps(document).encode()).layers == ()


OLD_TYPES = ["application/octet-stream", "application/json", "text/html", ""]


@pytest.mark.parametrize("config_type", OLD_TYPES)
def test_config_of_a_type_that_old_registries_wrote_is_an_images(config_type: str) -> None:
    document = json.loads(build_image().manifest)
    document["config"]["mediaType"] = config_type
    assert manifest.parse_manifest(json.dumps(document).encode())
    if not config_type:
        del document["config"]["mediaType"]
        assert manifest.parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    "layer_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ],
)
def test_layer_of_an_unsupported_media_type_is_refused_with_the_type(layer_type: str) -> None:
    image = build_image(b"x", layer_type=layer_type)
    with pytest.raises(BadImage, match=f"layer {digest_of(image.layers[0])} has the media type .*not supported"):
        manifest.parse_manifest(image.manifest)


def test_manifest_and_config_with_different_numbers_of_layers_are_refused() -> None:
    image = build_image(b"x", diff_ids=[digest_of(b"x"), digest_of(b"y")])
    with pytest.raises(BadImage, match="the config has 2 layers and the manifest 1"):
        manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))


def test_diff_id_that_is_a_path_is_refused() -> None:
    image = build_image(b"x", diff_ids=["../../etc"])
    with pytest.raises(BadImage, match="is not a sha256 digest"):
        manifest.parse_config(image.config, manifest.parse_manifest(image.manifest))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"config": {}}', b"\xff"])
def test_malformed_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match="manifest cannot be read"):
        manifest.parse_manifest(data)


def test_layout_with_several_manifests_is_refused() -> None:
    one = {"mediaType": "m", "digest": digest_of(b""), "size": 0}
    assert manifest.parse_layout(json.dumps({"manifests": [one]}).encode()).digest == digest_of(b"")
    with pytest.raises(BadImage, match="names 2 manifests"):
        manifest.parse_layout(json.dumps({"manifests": [one, one]}).encode())


def test_document_with_wrong_size_or_digest_is_refused() -> None:
    promised = Descriptor(media_type="m", digest=digest_of(b"abc"), size=3)
    assert manifest.verified(b"abc", promised, "config") == b"abc"
    with pytest.raises(BadImage, match="has 2 bytes, expected 3"):
        manifest.verified(b"ab", promised, "config")
    with pytest.raises(BadImage, match=f"has the digest {digest_of(b'abd')}"):
        manifest.verified(b"abd", promised, "config")


def test_chain_id_is_the_digest_of_the_chain_below_and_the_layer() -> None:
    first, second, third = (digest_of(content) for content in (b"1", b"2", b"3"))
    assert manifest.chain_id([]) == ""
    assert manifest.chain_id([first]) == first
    two = digest_of(f"{first} {second}".encode())
    assert manifest.chain_id([first, second, third]) == digest_of(f"{two} {third}".encode())
