# SPDX-License-Identifier: Apache-2.0
"""Measures container runtimes through the CRI, beside each other in one run: bench/compare starts it.

`sections/` holds what is measured; all else brings up, takes down, or writes down. docs/benchmarks.md says what
the figures mean.
"""
