# SPDX-License-Identifier: Apache-2.0
"""NRI: the Node Resource Interface 0.12, by which plugins observe and adjust pods and containers."""
