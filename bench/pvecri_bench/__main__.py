# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri_bench`: see bench/compare."""

from __future__ import annotations

import sys

from pvecri_bench.run import main

if __name__ == "__main__":
    sys.exit(main())
