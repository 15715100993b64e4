# SPDX-License-Identifier: Apache-2.0
"""PullImage: resolve a reference, plan what is missing, fetch and extract layers, commit the image."""
