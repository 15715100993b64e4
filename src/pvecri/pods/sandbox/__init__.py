# SPDX-License-Identifier: Apache-2.0
"""RunPodSandbox, StopPodSandbox and RemovePodSandbox, and the CT that a pod is."""
