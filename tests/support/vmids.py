# SPDX-License-Identifier: Apache-2.0
"""VMIDs for one test process: they name cgroups and LXC directories, which all processes of the machine share."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_CLAIMS: list[socket.socket] = []


def claim(first: int, last: int, count: int) -> range:
    """Reserve `count` consecutive VMIDs of `first`…`last` until this process ends.

    No other process of this machine gets them from a call with the same `first` and `count`. LookupError if all
    are reserved.
    """
    blocks = [range(start, start + count) for start in range(first, last + 2 - count, count)]
    random.shuffle(blocks)  # a killed run may have left CTs with the first ones
    for block in blocks:
        # An abstract name: the kernel releases it at the process's end.
        claimed = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            claimed.bind(f"\0pvecri-tests/vmids/{block[0]}-{block[-1]}")
            _CLAIMS.append(claimed)
            return block
        claimed.close()
    raise LookupError(f"all VMIDs from {first} to {last} are reserved by running tests")
