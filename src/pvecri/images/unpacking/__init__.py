# SPDX-License-Identifier: Apache-2.0
"""From a layer's blob to files: the confined program that extracts it, and its client."""
