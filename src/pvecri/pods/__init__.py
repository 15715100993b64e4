# SPDX-License-Identifier: Apache-2.0
"""The Pod Manager: pods, their containers, the store, recovery."""
