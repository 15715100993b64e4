# SPDX-License-Identifier: Apache-2.0
"""Linux from Python, plainly: mounts, namespaces, cgroups, pidfds. Thin, typed, no policy."""
