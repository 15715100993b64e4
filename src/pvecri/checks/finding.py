# SPDX-License-Identifier: Apache-2.0
"""What a check has found."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """A `problem` keeps pods from running now; a `warning` may do so later, or costs a feature.

    `subject` is the module's name; `remedy` is what to do, as an imperative, and may be empty.
    """

    level: Literal["problem", "warning"]
    subject: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.level}: {self.subject}: {self.message}{remedy}"
