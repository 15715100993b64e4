# SPDX-License-Identifier: Apache-2.0
"""Errors of peers."""

from __future__ import annotations

from pvecri.errors import PvecriError


class ProtocolError(PvecriError):
    """The peer violated the protocol. Its connection is closed; others are not affected."""

    status = "INVALID_ARGUMENT"
