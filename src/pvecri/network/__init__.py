# SPDX-License-Identifier: Apache-2.0
"""The Network Manager: CNI on the pod's network namespace, DNS, host ports."""
