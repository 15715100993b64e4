# SPDX-License-Identifier: Apache-2.0
"""How long tasks take on the embedded nodes that pods run on: PVECRI_TEST_TASK_TIMES, for example
`create=5,start=3,stop=1,destroy=0.5,config=0.2` (seconds; docs/embedded-node.md). Unset, they take no time.
"""

from __future__ import annotations

import os

from support.existing import EXISTING

TASK_TIMES = "" if EXISTING else os.environ.get("PVECRI_TEST_TASK_TIMES", "")

OPTIONS = ["--task-times", TASK_TIMES] if TASK_TIMES else []
"""The options of `python -m pvecri_embedded` that set them."""

OF_A_POD = sum(float(part.partition("=")[2]) for part in TASK_TIMES.split(",") if part)
"""Seconds added to one pod, from its create to its destroy."""

EXTRA_TIMEOUT = 10 * OF_A_POD
"""Seconds added to the timeouts of tests: the task times of ten pods, one after the other."""
