# SPDX-License-Identifier: Apache-2.0
"""The Proxmox VE API client: the pods' LXC containers and their template."""
