# SPDX-License-Identifier: Apache-2.0
"""Signals by name, as images, the CRI and the command line of an OCI runtime write them."""

from __future__ import annotations

import re
import signal
from typing import Final

_SIGNAL: Final = re.compile(r"([0-9]{1,3})|([A-Z0-9]+)((?<=RTMIN)\+[0-9]{1,2}|(?<=RTMAX)-[0-9]{1,2})?", re.ASCII)


def number(name: str) -> int | None:
    """A signal's number by name, with SIG or without, also an alias (`SIGTERM`, `CLD`, `RTMIN+3`), or by number.

    0 and the numbers up to 64 are taken as they are. None if there is no such signal.
    """
    matched = _SIGNAL.fullmatch(name.upper().removeprefix("SIG"))
    if matched is None:
        return None
    digits, base, offset = matched.groups()
    known = int(digits) if digits else getattr(signal, f"SIG{base}", None)
    if known is None:
        return None
    value = known + int(offset or 0)
    return value if 0 <= value < signal.NSIG else None
