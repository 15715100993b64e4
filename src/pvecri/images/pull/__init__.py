# SPDX-License-Identifier: Apache-2.0
"""PullImage in four stages, each a module: resolve, plan, fetch, commit. puller.py runs them in order."""
