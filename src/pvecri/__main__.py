# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri` is the `pvecri` command."""

import sys

from pvecri.cli.command_line import main

sys.exit(main())
