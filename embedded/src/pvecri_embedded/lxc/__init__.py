# SPDX-License-Identifier: AGPL-3.0-or-later
"""A CT as LXC runs it: its config, monitor, cgroups, mounts and interfaces. Knows nothing of the API."""
