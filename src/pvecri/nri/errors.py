# SPDX-License-Identifier: Apache-2.0
"""Errors of plugins.

InternalError
├── PluginError       a plugin returned an error; the message has its name and its message
└── Conflict          two plugins set the same field of one container
Unavailable
└── PluginGone        a plugin has disconnected
PvecriError
├── ProtocolError     a plugin violated the protocol
└── CallFailed        the peer answered a call with an error status
"""

from __future__ import annotations

from pvecri.errors import InternalError, PvecriError, Unavailable


class PluginError(InternalError):
    """A plugin returned an error, or did not register in time."""


class Conflict(InternalError):
    """Two plugins set the same field, and the later one did not remove the earlier's setting."""


class PluginGone(Unavailable):
    """The plugin disconnected before it answered."""


class ProtocolError(PvecriError):
    """The plugin's connection is closed; others are not affected."""

    status = "INVALID_ARGUMENT"


class CallFailed(PvecriError):
    """The peer answered a call with an error; `code` is a gRPC status code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message or f"status {code}")
        self.code = code
