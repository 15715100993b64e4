# SPDX-License-Identifier: Apache-2.0
"""The embedded node as a program of its own that writes down the requests it answers:

python -m pvecri_bench.node ACCESS_LOG OPTION…        (the options are those of pvecri_embedded)
"""

from __future__ import annotations

import logging
import runpy
import sys

ACCESS_LOGGER = "aiohttp.access"


def main() -> None:
    """Become the embedded node."""
    access_log = sys.argv.pop(1)
    logger = logging.getLogger(ACCESS_LOGGER)
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.FileHandler(access_log))
    logger.propagate = False
    runpy.run_module("pvecri_embedded", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
