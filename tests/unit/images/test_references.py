# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pvecri.errors import InvalidArgument
from pvecri.images.reference import Reference, parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("someone/app", "docker.io/someone/app:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b/c:1", "localhost:5000/a/b/c:1"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
        ("[::1]:5000/app:x", "[::1]:5000/app:x"),
        ("Registry/app", "Registry/app:latest"),
        ("a__b/c-_d.e".replace("-_", "--"), "docker.io/a__b/c--d.e:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
    ],
)
def test_short_reference_is_expanded_as_by_docker(short: str, full: str) -> None:
    assert str(parse(short)) == full


def test_full_reference_is_unchanged() -> None:
    reference = parse("quay.io/a/b:1")
    assert parse(str(reference)) == reference == Reference("quay.io", "a/b", tag="1")


def test_digest_takes_precedence_over_tag() -> None:
    assert parse(f"busybox:1.36@{DIGEST}") == Reference("docker.io", "library/busybox", digest=DIGEST)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'library/' is not a repository name"),
        ("UPPER", "'library/UPPER' is not a repository name"),
        ("a/b:", "'' is not a tag"),
        ("a/b:-x", "'-x' is not a tag"),
        ("a/b:" + "t" * 129, "is not a tag"),
        ("a//b", "'a//b' is not a repository name"),
        ("a/../b", "is not a repository name"),
        ("quay.io/", "'' is not a repository name"),
        ("a b", "is not a repository name"),
        ("a@sha256:12", "'sha256:12' is not a sha256 digest"),
        ("a@", "'' is not a sha256 digest"),
        (f"a@{DIGEST}@{DIGEST}", "is not a sha256 digest"),
        ("ab" * 32, "an image ID cannot be pulled"),
        ("-x.io/a", "'-x.io' is not a registry"),
        ("--policy=/x", "is not a repository name"),
        ("a" * 300, "longer than 255"),
    ],
)
def test_invalid_reference_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert caught.value.field == "image.image"
    assert problem in str(caught.value)
