# SPDX-License-Identifier: Apache-2.0
"""Extracting layers: the confined program that does it (worker.py), and its client in the daemon."""
