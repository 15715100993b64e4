# SPDX-License-Identifier: Apache-2.0
"""The warm pool: running CTs, created ahead, that wait for a pod to claim one."""
