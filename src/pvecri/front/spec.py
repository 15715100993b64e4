# SPDX-License-Identifier: Apache-2.0
"""The part of the OCI runtime spec that pvecri reads: whether a front's entries have the types that it demands.

The OCI runtime checks all others. Source: the OCI runtime spec's config.md, config-linux.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from pvecri.errors import InvalidArgument

_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\0]*\Z")]
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class _Memory(msgspec.Struct):
    limit: _Int64 | None = None


class _Cpu(msgspec.Struct):
    period: _Int64 | None = None
    quota: _Int64 | None = None
    shares: _Int64 | None = None


class _Pids(msgspec.Struct):
    limit: _Int64 | None = None


class _DeviceRule(msgspec.Struct):
    allow: bool | None = None
    type: str | None = None
    major: _Int64 | None = None
    minor: _Int64 | None = None
    access: str | None = None


class _Resources(msgspec.Struct):
    memory: _Memory | None = None
    cpu: _Cpu | None = None
    pids: _Pids | None = None
    devices: list[_DeviceRule] | None = None


class _Namespace(msgspec.Struct):
    type: str
    path: _Text | None = None


class _Linux(msgspec.Struct):
    cgroupsPath: _Text | None = None  # noqa: N815
    namespaces: list[_Namespace] | None = None
    resources: _Resources | None = None


class _Root(msgspec.Struct):
    path: _Text | None = None


class _Spec(msgspec.Struct):
    root: _Root
    hostname: str | None = None
    annotations: dict[str, str] | None = None
    linux: _Linux | None = None


def decode_spec(path: Path) -> dict[str, Any]:
    """The spec of a bundle's config.json; InvalidArgument with the file and the entry that is wrong."""
    try:
        return _decode(path.read_bytes(), _Spec, "--bundle", str(path))
    except OSError as error:
        raise InvalidArgument("--bundle", f"{path}: {error.strerror}") from error


def decode_resources(text: bytes) -> dict[str, Any]:
    """The `linux.resources` of an update; InvalidArgument with the entry that is wrong."""
    return _decode(text, _Resources, "--resources", "it")


def _decode(text: bytes, shape: type[msgspec.Struct], option: str, name: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
        msgspec.convert(found, shape)
    except msgspec.ValidationError as error:
        raise InvalidArgument(option, f"{name} is not of the OCI runtime spec: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(option, f"{name} is not JSON: {error}") from error
    assert isinstance(found, dict)
    return found
