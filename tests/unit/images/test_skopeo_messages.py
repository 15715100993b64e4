# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from pvecri.errors import CommandError, InvalidArgument, NotFound, PermissionDenied, Unavailable, Unimplemented
from pvecri.images.reference import parse
from pvecri.images.registry.skopeo import (
    RateLimited,
    WrongBlob,
    applies,
    auth_document,
    has_credentials,
    translate,
)
from pvecri.model import RegistryAuth

REFERENCE = parse("quay.io/a/b:1")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("reading manifest 1 in quay.io/a/b: manifest unknown: manifest unknown", NotFound),
        ("reading manifest 1 in quay.io/a/b: name unknown: repository not found", NotFound),
        ("choosing image instance: no image found in manifest list for architecture riscv64", NotFound),
        (
            "unable to retrieve auth token: invalid username/password: unauthorized: access denied",
            PermissionDenied,
        ),
        ("requested access to the resource is denied", PermissionDenied),
        ("Source image rejected: A signature was required, but no signature exists", PermissionDenied),
        ("toomanyrequests: You have reached your pull rate limit", RateLimited),
        ("pinging container registry quay.io: dial tcp: lookup quay.io: no such host", Unavailable),
        ("Get https://quay.io/v2/: x509: certificate signed by unknown authority", Unavailable),
        ("received unexpected HTTP status: 503 Service Unavailable", Unavailable),
        ("Error fetching blob: invalid status code from registry 500 (Internal Server Error)", Unavailable),
        ("Error fetching blob: invalid status code from registry 404 (Not Found)", NotFound),
        ("fetching blob: blob unknown to registry", NotFound),
        ("too many requests to registry", RateLimited),
        ("read tcp 10.0.0.1:40000->10.0.0.2:443: read: connection timed out", Unavailable),
        ("read tcp 10.0.0.1:40000->10.0.0.2:443: read: connection reset by peer", Unavailable),
        ("unexpected EOF", Unavailable),
        ("stream error: stream ID 5; INTERNAL_ERROR; received from peer", Unavailable),
        ("write |1: broken pipe", CommandError),
        ("corrupted blob, expecting sha256:00", WrongBlob),
        ("something new", CommandError),
    ],
)
def test_registry_message_selects_the_error_and_is_kept(words: str, kind: type[Exception]) -> None:
    line = f'time="2026-01-01T00:00:00Z" level=fatal msg="{words}"\n'
    error = translate(REFERENCE, CommandError("skopeo", 1, line))
    assert type(error) is kind
    assert words in str(error)


def test_escaped_quotes_in_messages_are_unescaped() -> None:
    line = (
        'level=fatal msg="Error parsing image name \\"docker://quay.io/a/b:1\\": Get \\"https://x\\": i/o timeout"'
    )
    error = translate(REFERENCE, CommandError("skopeo", 1, line))
    assert str(error) == 'RegistryUnavailable: pulling quay.io/a/b:1: Get "https://x": i/o timeout'


def test_repository_named_denied_is_not_a_permission_error() -> None:
    line = 'level=fatal msg="reading manifest 1 in quay.io/denied/x: manifest unknown"'
    assert isinstance(translate(parse("quay.io/denied/x:1"), CommandError("skopeo", 1, line)), NotFound)


@pytest.mark.parametrize("path", ["a", "e", "unknown"])
def test_short_repository_name_leaves_the_message_readable(path: str) -> None:
    line = f'level=fatal msg="reading manifest 1 in quay.io/{path}: name unknown: repository not found"'
    assert isinstance(translate(parse(f"quay.io/{path}:1"), CommandError("skopeo", 1, line)), NotFound)


def test_signature_error_begins_with_the_kubelets_prefix() -> None:
    error = translate(REFERENCE, CommandError("skopeo", 1, "Source image rejected: no"))
    assert str(error).startswith("SignatureValidationFailed: ")


def entry(auth: RegistryAuth) -> dict[str, str]:
    document: dict[str, dict[str, dict[str, str]]] = json.loads(auth_document(auth, "quay.io"))
    return document["auths"]["quay.io"]


def test_username_and_password_become_a_credentials_file() -> None:
    assert base64.b64decode(entry(RegistryAuth(username="u", password="p:w"))["auth"]) == b"u:p:w"


def test_encoded_credentials_and_identity_token_are_passed_on() -> None:
    made = base64.b64encode(b"u:p").decode()
    assert entry(RegistryAuth(auth=made, identity_token="token")) == {"auth": made, "identitytoken": "token"}


def test_credentials_that_are_not_base64_are_refused_without_leaking_them() -> None:
    with pytest.raises(InvalidArgument) as caught:
        auth_document(RegistryAuth(auth="hunter2"), "quay.io")
    assert "hunter2" not in str(caught.value)


def test_registry_token_is_refused() -> None:
    with pytest.raises(Unimplemented, match="registry_token"):
        auth_document(RegistryAuth(registry_token="t"), "quay.io")


@pytest.mark.parametrize(
    ("server", "image", "meant"),
    [
        ("", "quay.io/a/b", True),
        ("quay.io", "quay.io/a/b", True),
        ("https://quay.io/v2/", "quay.io/a/b", True),
        ("https://index.docker.io/v1/", "busybox", True),
        ("https://evil.example", "quay.io/a/b", False),
        ("quay.io:444", "quay.io/a/b", False),
    ],
)
def test_credentials_are_sent_only_to_their_server(server: str, image: str, meant: bool) -> None:
    auth = RegistryAuth(username="u", password="p", server_address=server)
    assert applies(auth, parse(image)) is meant


def test_empty_credentials_are_ignored() -> None:
    assert not applies(RegistryAuth(server_address="quay.io"), REFERENCE)


@pytest.mark.parametrize(
    ("document", "reference", "known"),
    [
        ('{"auths": {"quay.io": {}}}', "quay.io/a/b:1", True),
        ('{"auths": {"quay.io/a": {}}}', "quay.io/a/b:1", True),
        ('{"auths": {"quay.io/a/b": {}}}', "quay.io/a/b:1", True),
        ('{"auths": {"quay.io/a": {}}}', "quay.io/ab:1", False),
        ('{"auths": {"https://index.docker.io/v1/": {}}}', "busybox", True),
        ('{"credHelpers": {"quay.io": "secretservice"}}', "quay.io/a/b:1", True),
        ('{"credsStore": "desktop"}', "quay.io/a/b:1", True),
        ('{"auths": {}}', "quay.io/a/b:1", False),
        ("no json", "quay.io/a/b:1", False),
    ],
)
def test_credentials_file_is_searched_for_the_repository(
    tmp_path: Path, document: str, reference: str, known: bool
) -> None:
    (tmp_path / "auth.json").write_text(document)
    assert has_credentials(tmp_path / "auth.json", parse(reference)) is known
    assert not has_credentials(None, parse(reference))
