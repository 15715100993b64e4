# SPDX-License-Identifier: Apache-2.0
"""What is measured, a module a section. Each removes the pods and images that it made; after a failure the run
does that.
"""
