# SPDX-License-Identifier: Apache-2.0
"""System calls and kernel files: mounts, namespaces, cgroups, pidfds. Thin, typed, no policy."""
