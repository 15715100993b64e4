# SPDX-License-Identifier: Apache-2.0
"""The daemon's configuration: its settings, its files, and what is wrong with them."""
