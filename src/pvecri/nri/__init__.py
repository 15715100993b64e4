# SPDX-License-Identifier: Apache-2.0
"""NRI: plugins of the node that watch and adjust pods and containers (Node Resource Interface 0.12)."""
