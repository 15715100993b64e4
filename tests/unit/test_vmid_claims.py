# SPDX-License-Identifier: Apache-2.0
"""VMIDs that test processes reserve, so that any number of them can run at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.vmids import claim

FIRST = 1_000_000 + 100 * os.getpid()
"""The first of a hundred VMIDs that no other test claims."""

OTHER = """
import sys
from support.vmids import claim
print(claim(int(sys.argv[1]), int(sys.argv[1]) + 9, 10)[0], flush=True)
sys.stdin.read()
"""


def test_claims_are_disjoint_until_none_is_left() -> None:
    claimed = [claim(FIRST, FIRST + 34, 10) for _ in range(3)]
    assert sorted(vmid for block in claimed for vmid in block) == list(range(FIRST, FIRST + 30))
    with pytest.raises(LookupError, match=f"from {FIRST} to {FIRST + 34} are reserved"):
        claim(FIRST, FIRST + 34, 10)


def test_claim_of_another_process_ends_with_it() -> None:
    first = FIRST + 50
    command = [sys.executable, "-c", OTHER, str(first)]
    other = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == f"{first}\n"
    with pytest.raises(LookupError):
        claim(first, first + 9, 10)
    other.kill()
    other.communicate()
    assert claim(first, first + 9, 10)[0] == first
