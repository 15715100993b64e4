# SPDX-License-Identifier: Apache-2.0
"""Errors of the Network Manager.

FailedPrecondition
└── NetworkNotReady    no valid CNI configuration
InternalError
└── PluginError        a plugin failed; carries its name, the command and the error code
Unavailable
└── RecordsUnavailable  network.cache_dir cannot be read or written
"""

from __future__ import annotations

from pvecri.errors import FailedPrecondition, InternalError, Unavailable


class NetworkNotReady(FailedPrecondition):
    """No valid CNI configuration; the message names the directory and the error in each file."""


class PluginError(InternalError):
    """A CNI plugin failed; `code` is its error code (CNI specification, section 5, Error), 0 if it gave none."""

    def __init__(self, plugin: str, command: str, origin: str, problem: str, code: int = 0) -> None:
        super().__init__(f"CNI plugin {plugin} ({origin}): {command}: {problem}")
        self.plugin = plugin
        self.command = command
        self.problem = problem
        self.code = code


class RecordsUnavailable(Unavailable):
    """The directory of the attachments' records (network.cache_dir) cannot be used now."""
