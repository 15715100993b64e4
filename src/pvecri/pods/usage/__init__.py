# SPDX-License-Identifier: Apache-2.0
"""What pods and containers use: statistics, cadvisor's metrics, writable layers."""
