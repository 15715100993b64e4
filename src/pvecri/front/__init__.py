# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime's command line, for CRI-O, containerd and podman in front: the daemon's side."""
