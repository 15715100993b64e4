# SPDX-License-Identifier: Apache-2.0
"""Image references: `busybox`, `quay.io/a/b:1`, `name@sha256:…`, and what they are short for.

The grammar and the defaults are the field's own (the distribution project's reference package): no registry means
docker.io, one path component there lies in `library/`, and no tag means `latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pvecri.errors import InvalidArgument

DEFAULT_REGISTRY: Final = "docker.io"
MAX_NAME: Final = 255

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
    """A full reference: either `tag` or `digest` is set; as in containerd the digest wins where both are given."""

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
        """The same repository's content with this digest."""
        return Reference(self.registry, self.path, digest=digest)


def parse(text: str) -> Reference:
    """The full reference that `text` is short for.

    Raises InvalidArgument, for the CRI field `image.image`, that says which part is wrong.
    """
    name, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise _invalid(text, f"{digest!r} is no sha256 digest")
    name, tag = _split_tag(name)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{tag!r} is no tag")
    if _BARE_ID.fullmatch(name):
        raise _invalid(text, "an image id cannot be pulled")
    registry, path = _split_registry(name)
    if not _REGISTRY.fullmatch(registry):
        raise _invalid(text, f"{registry!r} is no registry")
    if not _PATH.fullmatch(path):
        raise _invalid(text, f"{path!r} is no repository name (lower-case letters, digits, separators)")
    if len(registry) + 1 + len(path) > MAX_NAME:
        raise _invalid(text, f"the name is longer than {MAX_NAME} characters")
    return Reference(registry, path, digest=digest) if digest else Reference(registry, path, tag=tag or "latest")


def _split_tag(name: str) -> tuple[str, str | None]:
    """A colon after the last slash begins a tag; before it, a port."""
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    return head + slash + last, tag if colon else None


def _split_registry(name: str) -> tuple[str, str]:
    """The first component is a registry when it has a dot, a port or upper case, or is `localhost`."""
    first, slash, rest = name.partition("/")
    if not slash or not (any(mark in first for mark in ".:") or first == "localhost" or first.lower() != first):
        first, rest = DEFAULT_REGISTRY, name
    if first == "index.docker.io":
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _invalid(text: str, problem: str) -> InvalidArgument:
    return InvalidArgument(_FIELD, f"{text!r} is not an image reference: {problem}")
