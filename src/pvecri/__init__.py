# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes container runtime for Proxmox VE: every pod is one Proxmox LXC container."""

__version__ = "0.1.0"
