# SPDX-License-Identifier: Apache-2.0
"""What `pvecri check` checks: one module a subject, each function yields what it has found and changes nothing."""
