# SPDX-License-Identifier: Apache-2.0
"""Image references such as `busybox`, `quay.io/a/b:1` or `name@sha256:…`, and their full form.

Grammar and defaults are those of the distribution project's reference package: the default registry is docker.io,
with `library/` before a single path component, the default tag `latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pvecri.errors import InvalidArgument

DEFAULT_REGISTRY: Final = "docker.io"
MAX_NAME: Final = 255  # NameTotalLengthMax of the reference package

_FIELD: Final = "image.image"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """A full reference. Either `tag` or `digest` is set: if both are given, the digest takes precedence."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and path, such as `docker.io/library/busybox`."""
        return f"{self.registry}/{self.path}"

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    def at(self, digest: str) -> Reference:
        """The reference of this digest in the same repository."""
        return Reference(self.registry, self.path, digest=digest)


def parse(text: str) -> Reference:
    """The full form of `text`; InvalidArgument, for the CRI field `image.image`, with the part that is wrong."""
    name, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise _invalid(text, f"{digest!r} is not a sha256 digest")
    name, tag = _split_tag(name)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{tag!r} is not a tag")
    if _BARE_ID.fullmatch(name):
        raise _invalid(text, "an image ID cannot be pulled")
    registry, path = _split_registry(name)
    if not _REGISTRY.fullmatch(registry):
        raise _invalid(text, f"{registry!r} is not a registry")
    if not _PATH.fullmatch(path):
        raise _invalid(text, f"{path!r} is not a repository name (lower-case letters, digits, separators)")
    if len(registry) + 1 + len(path) > MAX_NAME:
        raise _invalid(text, f"the name is longer than {MAX_NAME} characters")
    return Reference(registry, path, digest=digest) if digest else Reference(registry, path, tag=tag or "latest")


def _split_tag(name: str) -> tuple[str, str | None]:
    # A colon before the last slash begins a port.
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    return head + slash + last, tag if colon else None


def _split_registry(name: str) -> tuple[str, str]:
    # As in the reference package: a registry has a dot, a port or upper case, or is localhost.
    first, slash, rest = name.partition("/")
    if not slash or not (any(mark in first for mark in ".:") or first == "localhost" or first.lower() != first):
        first, rest = DEFAULT_REGISTRY, name
    if first == "index.docker.io":  # Docker Hub's name in old references and auth files
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _invalid(text: str, problem: str) -> InvalidArgument:
    return InvalidArgument(_FIELD, f"{text!r} is not an image reference: {problem}")
