# SPDX-License-Identifier: AGPL-3.0-or-later
"""An embedded Proxmox VE node: the API of fakepve over real local LXC containers.

A process of its own (``python -m pvecri.embedded``), for machines without Proxmox. It stands apart from
the rest of the package: nothing outside imports it, and it imports nothing of ours. Clients reach it over
HTTPS only and cannot tell it from a node of Proxmox VE 9.
"""
