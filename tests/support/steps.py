# SPDX-License-Identifier: Apache-2.0
"""How much a call computes, in executed bytecode instructions: the same in every run, unlike its time.

What C code does in one instruction, such as a lookup in a dictionary or a sort without a key, counts as one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(call: Callable[[], object]) -> int:
    """The number of instructions that Python executes for `call()`."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
