# SPDX-License-Identifier: Apache-2.0
"""Reads the command line: a module a command, and what the image commands share."""
