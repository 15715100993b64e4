# SPDX-License-Identifier: Apache-2.0
"""Pods and containers of a front: CRI-O, containerd or podman, which calls pvecri-runtime as its OCI runtime."""
