# SPDX-License-Identifier: Apache-2.0
"""A whole installation on one machine, for script/serve and script/demo: an embedded Proxmox node and pvecri.

Not part of the product: it starts the same two programs that a user starts by hand, as processes of their own.
"""
