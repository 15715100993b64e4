# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with plugins.

InternalError
├── PluginError       a plugin refused what it was asked; the message carries its name and its words
└── Conflict          two plugins want different things of one container
Unavailable
└── PluginGone        a plugin's connection has ended
PvecriError
└── ProtocolError     a plugin sent what the protocol does not allow
"""

from __future__ import annotations

from pvecri.errors import InternalError, PvecriError, Unavailable


class PluginError(InternalError):
    """A plugin refused."""


class Conflict(InternalError):
    """Two plugins changed the same thing; neither can be said to be right."""


class PluginGone(Unavailable):
    """The plugin's connection ended before it answered."""


class ProtocolError(PvecriError):
    """The plugin's connection cannot go on; no other one is touched."""

    status = "INVALID_ARGUMENT"


class CallFailed(PvecriError):
    """The other side answered a call with a status of its own; `code` is a gRPC status code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message or f"status {code}")
        self.code = code
