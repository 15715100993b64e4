# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a peer."""

from __future__ import annotations

from pvecri.errors import PvecriError


class ProtocolError(PvecriError):
    """The peer sent what the protocol does not allow. Its connection cannot go on; no other one is touched."""

    status = "INVALID_ARGUMENT"
