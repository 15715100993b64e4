# SPDX-License-Identifier: Apache-2.0
"""The Image Manager: pulls images, keeps their layers, mounts them as root filesystems."""
