# SPDX-License-Identifier: AGPL-3.0-or-later
"""The parts of the API that are not fakepve's: mix-ins of the node, by the paths that they answer."""
