# SPDX-License-Identifier: AGPL-3.0-or-later
"""An embedded Proxmox VE node: the API of fakepve over real local LXC containers.

A process of its own (``python -m pvecri_embedded``), for machines without Proxmox. A distribution of its
own: it imports nothing of pvecri, and pvecri nothing of it. Clients reach it over HTTPS only and cannot tell it
from a node of Proxmox VE 9.
"""
