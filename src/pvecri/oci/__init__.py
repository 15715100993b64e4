# SPDX-License-Identifier: Apache-2.0
"""OCI containers inside a pod: the spec, conmon and the OCI runtime."""
