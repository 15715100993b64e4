# SPDX-License-Identifier: Apache-2.0
"""Ids, and the base of all values."""

from __future__ import annotations

from typing import NewType

import msgspec

SandboxId = NewType("SandboxId", str)
"""64 lower-case hex digits."""
ContainerId = NewType("ContainerId", str)
"""64 lower-case hex digits."""
ImageId = NewType("ImageId", str)
"""`sha256:` and 64 hex digits: the digest of the image's config, or of an artifact's manifest."""
Vmid = NewType("Vmid", int)
"""The id of a Proxmox guest, unique in the cluster: 100 to 999999999."""


# Most fields have their defaults: without them the store's JSON is short.
class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all values."""
