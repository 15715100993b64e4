# SPDX-License-Identifier: Apache-2.0
"""`pvecri setup`: does what docs/proxmox-setup.md and docs/operations/by-hand.md describe, and undoes it.

It changes Proxmox by `pveum` and `pvesh` only, as an administrator would.
"""
