# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with CNI.

FailedPrecondition
└── NetworkNotReady    there is no network to attach pods to
InternalError
└── PluginError        a plugin failed; carries its name, the command and its own code
"""

from __future__ import annotations

from pvecri.errors import FailedPrecondition, InternalError


class NetworkNotReady(FailedPrecondition):
    """No usable CNI configuration; the message says where it was looked for and what was wrong."""


class PluginError(InternalError):
    """A CNI plugin did not do as it was told.

    `code` is the plugin's own (CNI specification, section 5, Error): 0 when it gave none.
    """

    def __init__(self, plugin: str, command: str, origin: str, problem: str, code: int = 0) -> None:
        super().__init__(f"CNI plugin {plugin} ({origin}): {command}: {problem}")
        self.plugin = plugin
        self.command = command
        self.problem = problem
        self.code = code
