# SPDX-License-Identifier: AGPL-3.0-or-later
"""Replays what a real Proxmox VE node answered against the embedded node."""
