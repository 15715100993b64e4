# SPDX-License-Identifier: Apache-2.0
"""How the daemon is watched: log, metrics, traces, probes."""
