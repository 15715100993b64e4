# SPDX-License-Identifier: Apache-2.0
"""Which manifests are artifacts, and which file each of their layers becomes."""

from __future__ import annotations

import json

import pytest
from support.image_builder import OCI_CONFIG, OCI_EMPTY, BuiltImage, build_artifact, build_image, digest_of

from pvecri.images.artifacts import MAX_FILES, parse_artifact
from pvecri.images.manifest import BadImage, Content, parse_manifest


def parsed(built: BuiltImage) -> Content:
    return parse_artifact(built.manifest, parse_manifest(built.manifest))


def files(built: BuiltImage) -> list[str]:
    return [layer.file for layer in parsed(built).layers]


def test_artifact_has_the_digest_of_its_manifest_and_the_size_of_its_blobs() -> None:
    built = build_artifact(("a", b"12345"), ("b", b"1"))
    content = parsed(built)
    assert (content.id, content.size) == (digest_of(built.manifest), len(b"{}") + 6)
    assert content.artifact_type == "application/vnd.example.model"
    assert [layer.extracted_digest for layer in content.layers] == [digest_of(b"12345"), digest_of(b"1")]


@pytest.mark.parametrize(
    ("built", "is_artifact"),
    [
        (build_artifact(("a", b"1")), True),
        (build_artifact(("a", b"1"), artifact_type=None), True),
        (build_artifact(("a", b"1"), config=("application/vnd.cncf.helm.config.v1+json", b"{}")), True),
        (build_artifact(("a", b"1"), config=("application/json", b"{}")), True),
        (build_artifact(("a", b"1"), config=(OCI_CONFIG, b"{}")), True),
        (build_image(b"layer"), False),
        (build_image(b"layer", config_type="application/octet-stream"), False),
    ],
)
def test_types_distinguish_artifacts_from_images(built: BuiltImage, is_artifact: bool) -> None:
    assert parse_manifest(built.manifest).is_artifact == is_artifact


def test_image_with_an_artifact_type_is_an_image() -> None:
    document = {**json.loads(build_image(b"layer").manifest), "artifactType": "application/vnd.example"}
    assert not parse_manifest(json.dumps(document).encode()).is_artifact


def test_type_of_an_artifact_without_one_is_its_configs() -> None:
    built = build_artifact(artifact_type=None, config=("application/vnd.cncf.helm.config.v1+json", b"{}"))
    assert parsed(built).artifact_type == "application/vnd.cncf.helm.config.v1+json"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("model.bin", "model.bin"),
        ("sub/path/2", "sub/path/2"),
        ("./a//b/./c/", "a/b/c"),
        ("..a/b..", "..a/b.."),
        (".hidden", ".hidden"),
        ("größe", "größe"),
        ("", f"sha256-{digest_of(b'1').removeprefix('sha256:')}"),
        (None, f"sha256-{digest_of(b'1').removeprefix('sha256:')}"),
    ],
)
def test_file_has_the_title_of_its_layer_or_the_digest(name: str | None, file: str) -> None:
    assert files(build_artifact((name, b"1"))) == [file]


def test_file_of_a_model_has_its_filepath() -> None:
    document = json.loads(build_artifact((None, b"1")).manifest)
    document["layers"][0]["annotations"] = {"org.cncf.model.filepath": "weights/1.safetensors"}
    data = json.dumps(document).encode()
    assert [layer.file for layer in parse_artifact(data, parse_manifest(data)).layers] == ["weights/1.safetensors"]


def test_empty_layer_is_no_file() -> None:
    assert files(build_artifact()) == []
    assert files(build_artifact(("named", b"{}"), layer_type=OCI_EMPTY)) == ["named"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../x", "has a .. in it"),
        ("a/../../x", "has a .. in it"),
        ("a/..", "has a .. in it"),
        ("/etc/passwd", "is absolute"),
        (".", "is not a file's name"),
        ("./", "is not a file's name"),
        ("a\0b", "has control characters"),
        ("a\nb", "has control characters"),
        ("x" * 256, "is too long"),
        ("ä" * 128, "is too long"),
        ("x/" * 2048 + "x", "is too long"),
    ],
)
def test_name_that_leads_elsewhere_is_refused(name: str, problem: str) -> None:
    with pytest.raises(BadImage, match=f"layer {digest_of(b'1')}: its file name .* {problem}"):
        files(build_artifact((name, b"1")))


@pytest.mark.parametrize("other", ["a", "./a", "a/"])
def test_two_contents_for_one_name_are_refused(other: str) -> None:
    with pytest.raises(BadImage, match="have the same file name 'a'"):
        files(build_artifact(("a", b"1"), (other, b"2")))
    assert files(build_artifact(("a", b"1"), (other, b"1"))) == ["a"]


@pytest.mark.parametrize("names", [("a", "a/b/c"), ("a/b/c", "a/b")])
def test_file_below_a_file_is_refused(names: tuple[str, str]) -> None:
    with pytest.raises(BadImage, match="is a file, too"):
        files(build_artifact(*((name, name.encode()) for name in names)))


def test_more_files_than_a_root_filesystem_can_have_are_refused() -> None:
    def many(number: int) -> BuiltImage:
        return build_artifact(*((f"f{each}", b"1") for each in range(number)))

    assert len(files(many(MAX_FILES))) == MAX_FILES
    with pytest.raises(BadImage, match=f"has {MAX_FILES + 1} files; at most {MAX_FILES}"):
        files(many(MAX_FILES + 1))


def test_same_content_under_another_name_is_another_layer() -> None:
    one, two = parsed(build_artifact(("a", b"1"), ("b", b"1"))).layers
    assert one.diff_id != two.diff_id
    assert one.diff_id == parsed(build_artifact(("a", b"1"))).layers[0].diff_id
    assert one.diff_id.isalnum()
