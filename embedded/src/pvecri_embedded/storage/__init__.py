# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes and templates as they lie on disk. Knows nothing of the API."""
