# SPDX-License-Identifier: Apache-2.0
"""Where images come from: registries through skopeo, OCI archives, templates that Proxmox pulled."""
