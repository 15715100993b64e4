#!/usr/lib/pvecri/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
import sys

from pvecri.cli.command_line import main

sys.exit(main())
